"""Trading time for memory: activations that are computed again in the backward pass."""

from __future__ import annotations

from torch import nn

from genkit.errors import UsageError


def checkpoint_gradients(module: nn.Module) -> list[str]:
    """Switch gradient checkpointing on in every part of a module that offers it, as Diffusers and Transformers do.

    Gradients stay the same; activations of one block instead of all are kept, for about a third more time.

    Args:
        module: a network, or a module that holds some. A task may name further networks, which are no submodules of
            it, by a method ``networks()``.

    Returns:
        Class names of the parts that were switched.

    Raises:
        UsageError: no part offers it.
    """
    switched = []
    for whole in (module, *getattr(module, "networks", tuple)()):
        for part in whole.modules():
            # Diffusers' name, then Transformers'.
            for switch in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
                offered = getattr(part, "_supports_gradient_checkpointing", None)
                if hasattr(part, switch) and (offered or getattr(part, "supports_gradient_checkpointing", False)):
                    getattr(part, switch)()
                    switched.append(type(part).__name__)
                    break
    if not switched:
        names = sorted({type(part).__name__ for part in module.children()} or {type(module).__name__})
        raise UsageError(
            f"gradient_checkpointing: no part of {', '.join(names)} offers it; allowed: networks of Diffusers or "
            "Transformers. Leave it out"
        )
    return switched
