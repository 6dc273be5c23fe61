"""Code of models that computes attention out of the gate's sight."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

_BYPASS = {
    "get_attention_scores": "computes attention with its own matrix products",
    "memory_efficient_attention": "calls xformers directly",
}


def bypass_reason(processor: Any) -> str | None:
    """Why an attention processor never reaches the gate, or None when nothing speaks against it."""
    return None if processor is None else _bypass_reason(type(processor))


@functools.cache
def _bypass_reason(kind: type) -> str | None:
    try:
        source = inspect.getsource(kind.__call__)
    except (OSError, TypeError):
        return None  # There is no source to read; then report() tells how many forwards came without attention.
    for mark, reason in _BYPASS.items():
        if mark in source:
            return (
                f"its processor {kind.__name__} {reason}, so genkit cannot see its queries and keys; go back to the "
                f"default processors (set_attn_processor, disable_attention_slicing, "
                f"disable_xformers_memory_efficient_attention)"
            )
    return None


def early_name(function: Callable[..., Any], *owners: Any) -> str | None:
    """Why an attention call never reaches the gate: code holds the function under another name.

    Args:
        function: torch's own attention function, as it was before any patch.
        owners: an attention module and its processor, or None in their place.
    """
    for kind in dict.fromkeys(type(owner) for owner in owners if owner is not None):
        for name, value in vars(sys.modules.get(kind.__module__, object)).items():
            if value is function:
                return (
                    f"{kind.__module__} holds torch's attention function under its own name {name!r} since it was "
                    f"imported, so genkit does not see the call of {kind.__name__}; let it call "
                    f"torch.nn.functional.scaled_dot_product_attention by that whole name"
                )
    return None
