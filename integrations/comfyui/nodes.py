"""The node: its inputs as ComfyUI shows them."""

from __future__ import annotations

from typing import Any

from genkit.attention import registry
from genkit.attention.method import Method
from genkit.attention.scored import WithBias
from genkit.errors import UsageError
from genkit.pipelines.text import parse_pairs

from .patch import apply

# A learned bias is installed, too; a method that has one is refused where it is built.
_PLAIN = (Method.install, WithBias.install)


def methods() -> list[str]:
    """Methods that need queries, keys, values and the token grid alone: none with weights or hooks of their own."""
    classes = {name: registry.method_class(name) for name in registry.usable()}
    return [
        name
        for name, cls in classes.items()
        if cls.install in (Method.install, WithBias.install)
        and cls.arguments is Method.arguments
        and "self" in cls.roles
    ]


class SparseAttention:
    """Replaces the self-attention of a diffusion model by a sparse method of genkit."""

    CATEGORY = "model_patches/attention"
    DESCRIPTION = (
        "Sparse attention by genkit. Cross-attention, blocks listed as dense, steps outside of the range and whatever "
        "cannot be served keep ComfyUI's own attention; the log says what ran and what did not."
    )
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node, in ComfyUI's form."""
        names = methods()
        return {
            "required": {
                "model": ("MODEL",),
                "method": (names, {"default": "radial" if "radial" in names else names[0]}),
                "arguments": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "settings of the method as key=value,key=value; empty = its defaults. `genkit "
                        "methods` lists them",
                    },
                ),
                "start_percent": (
                    "FLOAT",
                    {
                        "default": 0.2,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "tooltip": "share of the sampling that stays dense at the beginning",
                    },
                ),
                "end_percent": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "tooltip": "share of the sampling after which attention is dense again",
                    },
                ),
                "dense_blocks": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "blocks that stay dense: numbers and half-open ranges, negative from the end, for "
                        "instance 0:2,-1",
                    },
                ),
            }
        }

    def patch(
        self, model: Any, method: str, arguments: str, start_percent: float, end_percent: float, dense_blocks: str
    ) -> tuple[Any]:
        """A patched clone of the model; the one given stays as it is.

        Raises:
            UsageError: a setting the method or the model does not have.
        """
        settings = parse_pairs(arguments, "arguments") if arguments.strip() else {}
        built = registry.build(method, settings)
        if built.needs_heads:
            raise UsageError(
                f"arguments: {built.describe()} has weights of its own, which this node cannot hold; use a bias "
                f"without learned terms"
            )
        return (apply(model, built, start_percent, end_percent, dense_blocks),)
