"""Rules for token grids that many records share: they read a forward's arguments and say where tokens sit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genkit.families.base import MAIN, TEXT, Streams, grid_with, shape, text_length


def latent_grid(
    family: str, axes: str = "BCTHW", argument: str = "hidden_states", patch: str = "patch_size", patch_t: str = ""
) -> Callable[[Any, Mapping[str, Any]], tuple[int, int, int]]:
    """A rule from (model, arguments) to the (T, H, W) grid of latents cut into patches.

    Args:
        family: name for messages.
        axes: order of the argument's axes; without a T there is one frame.
        argument: forward argument with the latents.
        patch: attribute of the configuration with the patch's size: one number (height and width) or three.
        patch_t: the same for time; "" = ``patch`` says it, or 1.
    """

    def rule(model: Any, args: Mapping[str, Any]) -> tuple[int, int, int]:
        sizes = dict(zip(axes, shape(args, argument, len(axes), family), strict=True))
        steps = getattr(model.config, patch) if patch else 1
        t, h, w = (1, steps, steps) if isinstance(steps, int) else (1, *steps) if len(steps) == 2 else steps
        if patch_t:
            t = getattr(model.config, patch_t) or 1
        return sizes.get("T", 1) // t, sizes["H"] // h, sizes["W"] // w

    return rule


def alone(rule: Callable[[Any, Mapping[str, Any]], tuple[int, int, int]]) -> Callable[..., Streams]:
    """Streams of a model whose grid attends among itself; text is asked in attention of its own."""
    return lambda model, args: {MAIN: grid_with(rule(model, args))}


def with_text(
    rule: Callable[[Any, Mapping[str, Any]], tuple[int, int, int]],
    family: str,
    first: bool = False,
    argument: str = "encoder_hidden_states",
) -> Callable[..., Streams]:
    """Streams of a model in which grid and text attend together, text before or after the grid."""

    def streams(model: Any, args: Mapping[str, Any]) -> Streams:
        text = ((TEXT, text_length(args, family, argument)),)
        return {MAIN: grid_with(rule(model, args), before=text if first else (), after=() if first else text)}

    return streams
