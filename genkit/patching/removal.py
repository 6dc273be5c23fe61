"""The patches of a pipeline or model whose handles are lost: finding them and taking them off."""

from __future__ import annotations

from typing import Any

from genkit.errors import UsageError, explain
from genkit.families.lookup import unwrap
from genkit.patching.handle import PatchHandle
from genkit.patching.patched_model import PatchedModel
from genkit.patching.processors import put_back


def patches(target: Any) -> tuple[PatchHandle, ...]:
    """The patches in force on a Diffusers pipeline (on any of its models) or on a bare model, oldest first.

    Args:
        target: a pipeline or model; torch.compile, peft and DDP wrappers are looked through.

    Returns:
        Their handles, as :func:`genkit.patch` returned them; empty when nothing is patched. Patches made through
        :func:`genkit.attn_processors` are among them, from the moment the processors exist.

    Raises:
        UsageError: something that is neither a pipeline nor a model.
    """
    followed = [PatchedModel.of(model) for model in _models(target)]
    handles = (patch for model in followed if model is not None for patch in model.patches)
    return tuple(dict.fromkeys(handles))


def unpatch(target: Any) -> tuple[PatchHandle, ...]:
    """Take every patch off a pipeline or model, whoever holds the handles; models are restored bit for bit.

    A patch that covers several models is taken off all of them, and processors of :func:`genkit.attn_processors` make
    room for the model's own. Under activation checkpointing call it after backward.

    Args:
        target: a pipeline or model; torch.compile, peft and DDP wrappers are looked through.

    Returns:
        The handles of what was removed, oldest first; their ``report()`` still tells what ran. Empty when nothing was
        patched.

    Raises:
        UsageError: something that is neither a pipeline nor a model.
    """
    found = patches(target)
    for handle in found:
        models = handle.models
        handle.remove()
        for model in models:
            put_back(model, handle)
    return found


def _models(target: Any) -> list[Any]:
    components = getattr(target, "components", None)
    parts = [target] if not isinstance(components, dict) else list(components.values())
    models = [unwrap(part) for part in parts if hasattr(part, "named_modules")]
    if not models and not isinstance(components, dict):
        raise UsageError(explain("patch target", type(target).__name__, "a Diffusers pipeline or denoiser"))
    return models
