"""Things built once per patch and used on every call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from genkit.attention.cache import PatchCache


def kept(cache: PatchCache, build: Callable[..., Any], *args: Hashable, device: torch.device) -> Any:
    """``build(*args).to(device)``, made once and stored in the cache.

    Args:
        build: a function of a module (not a closure) whose result has ``to(device)``, or None.
        args: hashable constants: methods, layouts, numbers, texts.
    """
    cache.device = device

    def make() -> Any:
        made = build(*args)
        return None if made is None else made.to(device)

    return cache.get((build.__module__, build.__qualname__, args, str(device)), make)
