"""Diffusers' caches as variants: ``first_block:threshold=0.1`` switches one on for the time of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from genkit import schema
from genkit.errors import UnsupportedError, UsageError, explain, said
from genkit.patching.targets import find_denoisers
from genkit.pipelines.text import parse_pairs

_PLAIN = re.compile(r"\b(?:int|float|bool)\b")
#: Settings that count steps or blocks between two computations: 0 divides by zero in the middle of a run.
_PERIOD = re.compile(r"(?:interval|skip_range)$")


@cache
def caches() -> dict[str, type]:
    """The caches of the installed Diffusers by name: ``FirstBlockCacheConfig`` is ``first_block``."""
    import diffusers.hooks as hooks

    found = {}
    for name in dir(hooks):
        if name.endswith("CacheConfig") or name == "PyramidAttentionBroadcastConfig":
            words = re.sub(r"(?<!^)(?=[A-Z])", "_", re.sub(r"(Cache)?Config$", "", name)).lower()
            found[words] = getattr(hooks, name)
    return found


def parse_cache(text: str, what: str = "--cache") -> Any:
    """The configuration that ``name`` or ``name:key=value,...`` means.

    Raises:
        UsageError: an unknown cache or setting, a value of another kind or below 0, or a cache that Diffusers refuses.
    """
    name, _, rest = text.partition(":")
    known = caches()
    if name not in known:
        raise UsageError(explain(what, name, known))
    fields = {field.name: field for field in dataclasses.fields(known[name]) if _PLAIN.search(str(field.type))}
    values: dict[str, Any] = {}
    for key, value in (parse_pairs(rest, what) if rest else {}).items():
        if key not in fields:
            raise UsageError(explain(f"setting of {what} {name}", key, fields))
        values[key] = _value(str(fields[key].type), value, f"{key} of {what} {name}")
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what} {name}: Diffusers refuses it: {said(error)}") from error


def _value(kind: str, text: str, what: str) -> Any:
    if "bool" in kind:
        return schema.read(bool, {"true": True, "false": False}.get(text.lower(), text), what)
    if "tuple" in kind.lower():
        parts = [int(each) for each in text.split("x")] if re.fullmatch(r"-?\d+x-?\d+", text) else None
        if parts is None or parts[0] >= parts[1]:
            raise UsageError(explain(what, text, "two whole numbers such as 100x800, the first below the second"))
        return tuple(parts)
    found = schema.number(text, float if "float" in kind else int, what)
    if found < 0:
        raise UsageError(explain(what, text, "a number from 0"))
    if found == 0 and _PERIOD.search(what.partition(" of ")[0]):
        raise UsageError(explain(what, text, "a whole number from 1"))
    return found


@contextmanager
def cached(pipeline: Any, config: Any) -> Iterator[None]:
    """A cache on every denoiser of a pipeline that can have one, for the time of the ``with``; None changes nothing.

    Raises:
        UnsupportedError: no denoiser takes a cache, or Diffusers refuses this one.
    """
    if config is None:
        yield
        return
    models: list[Any] = [denoiser.model() for denoiser in find_denoisers(pipeline)]
    fit = [model for model in models if hasattr(model, "enable_cache")]
    name = type(config).__name__
    if not fit:
        kinds = ", ".join(sorted({type(model).__name__ for model in models}))
        raise UnsupportedError(f"--cache: {kinds} takes no cache of Diffusers")
    on: list[Any] = []
    try:
        for model in fit:
            try:
                model.enable_cache(config)
            except (ValueError, TypeError, AttributeError) as error:
                raise UnsupportedError(f"--cache: Diffusers' {name} does not fit this model: {said(error)}") from error
            on.append(model)
        yield
    finally:
        for model in on:
            model.disable_cache()
