"""Things built once per patch and used on every call, in eager runs and in compiled graphs alike."""

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
    if torch.compiler.is_dynamo_compiling():
        return getattr(cache.shelf, _shelve(cache.number, build, device.type, device.index, *args))
    return _stored(cache, build, args, device)


def _stored(cache: PatchCache, build: Callable[..., Any], args: tuple[Hashable, ...], device: torch.device) -> Any:
    cache.device = device

    def make() -> Any:
        made = build(*args)
        return None if made is None else made.to(device)

    return cache.get((build.__module__, build.__qualname__, args, str(device)), make)


@torch.compiler.assume_constant_result
def _shelve(number: int, build: Callable[..., Any], kind: str, index: int | None, *args: Hashable) -> str:
    """Put the thing where a graph that is being traced can read it; returns the attribute of the cache's shelf.

    Runs in Python while the graph is traced, and the name it returns is a constant of the graph. The thing itself
    cannot be one: the compiler follows its tables only through an attribute of an object it knows. For the same reason
    ``args`` come one by one: a dataclass inside a tuple is not taken as a constant.
    """
    device = torch.device(kind) if index is None else torch.device(kind, index)
    cache = PatchCache.find(number)
    key = ("shelf", build.__module__, build.__qualname__, args, str(device))
    place = cache.get(key, lambda: f"item{len(vars(cache.shelf))}")
    setattr(cache.shelf, place, _stored(cache, build, args, device))
    return place
