"""The sparse method inside another one (a branch, a choice by layers), as a text: ``"block_select keep=0.1"``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from genkit.attention import registry
from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site, among
from genkit.attention.static import StaticMethod
from genkit.errors import UsageError, explain

_ROLES = ("self", "joint")


def able() -> list[str]:
    """Names of the methods that can be the sparse part."""
    return [name for name in registry.usable() if _reason(registry.method_class(name)) is None]


def tellers() -> list[str]:
    """Those of them that tell which blocks they read, with their defaults."""
    found = []
    for name in able():
        try:
            method = registry.method_class(name)()
        except TypeError:
            continue  # it has no defaults
        found += [name] if method.tells_blocks else []
    return found


def _reason(cls: type[Method]) -> str | None:
    """Why a method cannot be the sparse part, or None."""
    if getattr(cls, "two_branches", False):
        return "it has two branches itself"
    if not any(among(role, cls.roles) for role in _ROLES):
        return f"it works on {', '.join(cls.roles)} attention"
    if not (issubclass(cls, StaticMethod) or (cls.by_data and not cls.weighs)):
        return "it chooses no pairs of tokens"
    if not cls.trainable:
        return "nothing can be trained through it"
    return None


def parse(text: Any, what: str) -> Method:
    """The method of a text, or of a method as it is.

    Raises:
        UsageError: no such method or setting, or one that cannot be a sparse part; the message lists what can.
    """
    if isinstance(text, Method):
        method = text
    else:
        words = text.split() if isinstance(text, str) else []
        if not words:
            raise UsageError(explain(what, text, "a method with its settings, such as 'block_select keep=0.1'"))
        name, *pairs = words
        if name not in registry.names():
            raise UsageError(explain(what, name, able()))
        settings = {}
        for pair in pairs:
            key, sign, value = pair.partition("=")
            if not (key and sign and value):
                raise UsageError(f"{what}: got {pair!r} in {text!r}, allowed: setting=value, separated by spaces")
            if key in settings:
                raise UsageError(f"{what}: {key!r} is given twice in {text!r}")
            settings[key] = value
        method = registry.build(name, settings)
    reason = "it is added to attention" if method.adds else _reason(type(method))
    if reason is not None:
        raise UsageError(f"{what}: {method.name} cannot be the sparse part, {reason}; allowed: {', '.join(able())}")
    return method


def as_text(method: Method, what: str) -> str:
    """The inverse of :func:`parse`: the settings that differ from the defaults.

    Raises:
        UsageError: settings that have no such text.
    """
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    try:
        plain = type(method)()
        few = {name: value for name, value in values.items() if value != getattr(plain, name)}
    except TypeError:  # a setting without default
        few = values
    # all of them where one that is left out stands for something else beside the others, as under a preset
    for given in (few, values):
        text = " ".join([method.name, *(f"{name}={_plain(value)}" for name, value in given.items())])
        if len(text.split()) == 1 + len(given) and parse(text, what) == method:
            return text
    raise UsageError(f"{what}: {method.describe()} cannot be written as a text; give it as one, name and settings")


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_plain, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class WithSparsePart(Method):
    """A method around a sparse one, which its setting ``sparse`` names as a text; what is told to it goes to both."""

    sparse: str

    @functools.cached_property
    def part(self) -> Method:
        """The sparse method."""
        return parse(self.sparse, f"{self.name}.sparse")

    def why_not(self, site: Site) -> str | None:
        """As :meth:`Method.why_not`, of both parts."""
        return super().why_not(site) or self.part.why_not(site)

    def ready(self, cache: PatchCache) -> None:
        """See :meth:`Method.ready`; the sparse part's, too."""
        super().ready(cache)
        self.part.ready(cache)

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`Method.arguments`: those of the sparse part."""
        return self.part.arguments(given)

    def observe(self, given: Mapping[str, Any], cache: PatchCache) -> None:
        """See :meth:`Method.observe`: the sparse part's."""
        self.part.observe(given, cache)
