"""Records of other packages and of scripts: checked, owned by somebody, and refused where a name is taken."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

from genkit import plugins
from genkit.attention.site import ROLES
from genkit.errors import UsageError, explain
from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts
from genkit.plugins import Plugin, PluginError

# Name of a family -> the record and whose it is.
_KNOWN: dict[str, tuple[Family, str]] = {}
_LOCK = threading.RLock()
_loaded = False


def families(own: tuple[Family, ...]) -> tuple[Family, ...]:
    """The records of others, in the order in which they came; packages are loaded the first time.

    A package whose record cannot be loaded or used is left out with a warning that names it.

    Args:
        own: genkit's records, whose names and classes are taken.
    """
    global _loaded
    with _LOCK:
        if not _loaded:
            _loaded = True
            for plugin in plugins.found(plugins.FAMILIES).values():
                _load(plugin, own)
        return tuple(family for family, _ in _KNOWN.values())


def register(family: Family, own: tuple[Family, ...], owner: str) -> Family:
    """Make a record of somebody known; see :func:`genkit.register_family`."""
    reason = why_not(family)
    if reason is not None:
        raise UsageError(reason)
    families(own)
    with _LOCK:
        taken = _taken(family, owner, own)
        if taken is not None:
            raise UsageError(taken)
        _KNOWN[family.name] = family, owner
    return family


def why_not(family: Any) -> str | None:
    """Why a record could not work, whatever the model, or None."""
    if not isinstance(family, Family):
        return explain("family", family, "a genkit.families.Family")
    said = f"the record {family.name!r}"
    for name in ("name", "sample"):
        value = getattr(family, name)
        if not isinstance(value, str) or not value:
            return explain(f"{said}, {name}", value, "a text that is not empty")
    for name in ("classes", "pipelines", "reads", "order", "branches"):
        value = getattr(family, name)
        if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
            return explain(f"{said}, {name}", value, "a tuple of texts")
    if not family.classes:
        return explain(f"{said}, classes", family.classes, "at least one class name")
    if not isinstance(family.facts, PipelineFacts):
        return explain(f"{said}, facts", family.facts, "genkit.families.facts.PipelineFacts(pattern=...)")
    if not callable(family.streams):
        return explain(f"{said}, streams", family.streams, "a function from (model, arguments) to token layouts")
    if not family.rules or not all(isinstance(rule, SiteRule) for rule in family.rules):
        return explain(f"{said}, rules", family.rules, "a tuple of at least one SiteRule")
    for rule in family.rules:
        if rule.role not in ROLES:
            return explain(f"{said}, role of {rule.pattern!r}", rule.role, ROLES)
    for pattern in (family.facts.pattern, *(rule.pattern for rule in family.rules)):
        try:
            re.compile(pattern)
        except re.error as error:
            return f"{said}: {pattern!r} is no regular expression: {error}"
    return None


def _taken(family: Family, owner: str, own: Iterable[Family]) -> str | None:
    """Who has the name or a class of a record already, or None."""
    there = [(each, "genkit") for each in own]
    there += [(each, whose) for each, whose in _KNOWN.values() if (each.name, whose) != (family.name, owner)]
    for known, whose in there:
        if known.name.lower() == family.name.lower():
            return f"the family {family.name!r} already belongs to {whose}; choose another name"
        both = [name for name in family.classes if name in known.classes]
        if both:
            return f"{', '.join(both)} of the family {family.name!r} already belongs to {known.name!r} of {whose}"
    return None


def _load(plugin: Plugin, own: tuple[Family, ...]) -> None:
    try:
        given = plugin.load()
    except PluginError as error:
        plugins.left_out(error)
        return
    many = getattr(given, "FAMILIES", None) or getattr(given, "FAMILY", None) or given
    for family in many if isinstance(many, (tuple, list)) else (many,):
        try:
            register(family, own, plugin.owner)
        except UsageError as error:
            plugins.left_out(f"{plugin} is left out: {error}")
