"""Rotary positions of a larger base (NTK-aware scaling): for pictures larger than a model was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.patching.targets import find_denoisers


@contextmanager
def rotary_base(target: Any, factor: float) -> Iterator[None]:
    """The base of rotary positions is ``factor`` times as large within the block, on every axis.

    Slow channels turn more slowly, fast ones as before, so that far tokens of a large picture stay within the angles
    the model knows.

    Args:
        target: pipeline or denoiser whose embedder computes its angles at every call (Flux, HunyuanVideo, LTX-Video).
        factor: 1 = as it is; CLEAR takes 10 from 1024 to 4096 pixels.

    Raises:
        UnsupportedError: a model without such an embedder, or whose angles are in tables that were made beforehand.
        UsageError: a factor that is no number above 0.

    Source: CLEAR, arXiv 2412.16112 (``ntk_factor``).
    """
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not (math.isfinite(factor) and factor > 0):
        raise UsageError(explain("rotary_base factor", factor, "a number above 0"))
    models = [each.model() for each in find_denoisers(target)]
    found: list[Any] = [part for model in models if model is not None for part in model.modules() if _turns(part)]
    if not found:
        raise UnsupportedError(
            f"{type(target).__name__} has no embedder of rotary positions with a base that is read at every call"
        )
    before = [part.theta for part in found]
    for part in found:
        part.theta = part.theta * factor
    try:
        yield
    finally:
        for part, theta in zip(found, before, strict=True):
            part.theta = theta


def _turns(part: nn.Module) -> bool:
    """Whether a module reads a base at every call, rather than having made tables of it."""
    theta = getattr(part, "theta", None)
    number = isinstance(theta, (int, float)) and not isinstance(theta, bool)
    tables = list(part.buffers(recurse=False)) or any(name.endswith(("freqs", "inv_freq")) for name in vars(part))
    return number and not tables and not list(part.parameters(recurse=False))
