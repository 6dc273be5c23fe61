"""What a user asks for: one machine that turns flags, configuration files and stored records into settings.

A command's settings are a frozen dataclass derived from :class:`Settings`, usually put together from groups of fields
(:mod:`genkit.pipelines.settings`). Nothing here knows a particular one.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.reading import read_yaml
from genkit.reading.files import place
from genkit.schema import RULE, Rule, hints_of, read

ALWAYS, NEVER, WHEN_GIVEN = "always", "never", "when given"
#: What stands for bytes that are no UTF-8, and halves of characters in JSON.
_HALF = re.compile(r"[\ud800-\udfff]")
#: The origin of flags.
COMMAND_LINE = "the command line"


def option(
    default: Any,
    help: str,
    *,
    group: str = "Generation",
    rule: Rule | None = None,
    parse: Callable[[Any, str], Any] | None = None,
    stored: str = ALWAYS,
    one_way: bool = False,
    belongs: str | None = None,
    before: Any = None,
    prose: bool = False,
    repeats: str | None = None,
) -> Any:
    """A settings field with the text that ``--help``, documentation and error messages show.

    Args:
        default: None means "left open".
        help: one line.
        group: heading in ``--help``.
        rule: which values of its type are allowed.
        parse: turns another way to write the value (``parse(value, what)``) into one of the field's type; it leaves a
            value that already is one as it is.
        stored: :data:`ALWAYS`, :data:`NEVER` (it does not change what is made), or :data:`WHEN_GIVEN`.
        one_way: a switch without ``--no-...``.
        belongs: name of the setting without which this one means nothing; another value of that one drops it.
        before: what runs did whose records do not name the setting, since it came later; None = the default.
        prose: words for a model, which are whole characters. Names of files may hold any bytes.
        repeats: name of the setting of which several values, each by its flag, are meant as values of this one.
    """
    metadata = {
        "help": help, "group": group, RULE: rule or Rule(), "parse": parse, "stored": stored, "one_way": one_way,
        "belongs": belongs, "before": before, "prose": prose, "repeats": repeats,
    }  # fmt: skip
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base of every command's settings: frozen, checked when made, and again by :meth:`replace`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            value = _read(type(self), field, given, flag(field.name))
            if value != given or type(value) is not type(given) or type(value) in (tuple, str):
                object.__setattr__(self, field.name, value)
        self._ask(field.name for field in dataclasses.fields(self) if getattr(self, field.name) != _default(field))
        self.check()

    def _ask(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "_asked", frozenset(names))

    def asked(self, *names: str) -> bool:
        """Whether the user wrote all of these settings now: an earlier run's record does not ask for anything."""
        return self._asked.issuperset(names)

    def given(self, name: str) -> bool:
        """Whether a setting was written, be it as the default has it, or differs from the default."""
        return self.asked(name) or getattr(self, name) != _default(type(self).__dataclass_fields__[name])

    def check(self) -> None:
        """Rules between several settings. A group overrides this and calls ``super().check()``."""

    @classmethod
    def merge(cls, before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """``before`` with what a later source gives. A group with settings that replace each other overrides this."""
        return {**before, **given}

    @classmethod
    def unknown(cls, origin: str, values: Mapping[str, Any]) -> str:
        """The message about names in a source that are no settings; settings that others write otherwise say how."""
        return explain(f"setting in {origin}", next(iter(values)), cls.field_names())

    @classmethod
    def counterpart(cls, name: str) -> str:
        """What other programs' name of an option is here, in a few words; empty where nothing is known of it."""
        return ""

    @classmethod
    def field_names(cls) -> list[str]:
        """The settings by name, in order."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What :meth:`to_dict` gives for settings that nobody wrote, by name."""
        found = {field.name: _default(field) for field in dataclasses.fields(cls)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def completed(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of an earlier run, with what it did where a later version lets choose."""
        before = {field.name: field.metadata["before"] for field in dataclasses.fields(cls)}
        return {**{name: value for name, value in before.items() if value is not None}, **record}

    @classmethod
    def from_mappings(
        cls, *sources: tuple[str, Mapping[str, Any]], stored: tuple[str, Mapping[str, Any]] | None = None
    ) -> typing.Self:
        """Merge several (origin, values) pairs, the later ones winning; a None counts as not given.

        Args:
            sources: what the user wrote: files, then flags.
            stored: the record of an earlier run that the others change.

        Raises:
            UsageError: an unknown name or a value of the wrong type; the message names the origin.
        """
        merged: dict[str, Any] = {}
        asked: dict[str, Any] = {}
        if stored is not None:
            stored = (stored[0], cls.completed(stored[1]))
        for source in ([stored] if stored is not None else []) + list(sources):
            origin, values = source
            given = {key: value for key, value in _from_source(cls, origin, values).items() if value is not None}
            merged = cls.merge(merged, given)
            if source is not stored:
                asked = cls.merge(asked, given)
        made = cls(**merged)
        made._ask(asked)
        made.check()  # once more: what was written may be what nobody would have to write
        return made

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, without those that do not change what is made (``output``)."""
        values = {}
        for field in dataclasses.fields(self):
            value, stored = getattr(self, field.name), field.metadata["stored"]
            if stored == ALWAYS or (stored == WHEN_GIVEN and value != _default(field)):
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    def replace(self, **changes: Any) -> typing.Self:
        """A copy with some fields changed, checked again."""
        changed = dataclasses.replace(self, **changes)
        changed._ask(self._asked)
        return changed


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def flag(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _read(cls: type, field: dataclasses.Field, value: Any, what: str) -> Any:
    """A value of one field, as its type and rule want it."""
    if value is None:
        return None
    parse = field.metadata["parse"]
    value = read(hints_of(cls)[field.name], value if parse is None else parse(value, what), what)
    _check_rule(field.metadata[RULE], value, what)
    for text in value if isinstance(value, tuple) else [value]:
        if isinstance(text, str) and "\0" in text:
            raise UsageError(explain(what, text, "a text without the character NUL"))
        if isinstance(text, str) and field.metadata["prose"] and _HALF.search(text):
            raise UsageError(explain(what, text, "a text in UTF-8", "what was given holds bytes that are no character"))
    return value


def _check_rule(rule: Rule, value: Any, what: str) -> None:
    if not rule.allows(value):
        kind = {int: "a whole number", float: "a number"}.get(type(value), "a text")
        raise UsageError(explain(what, value, rule.choices or rule.words(kind)))


def _from_source(cls: type[Settings], origin: str, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = {key: value for key, value in values.items() if str(key).replace("-", "_") not in fields}
    if unknown:
        raise UsageError(cls.unknown(origin, unknown))
    result = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        what = flag(name) if origin == COMMAND_LINE else f"{key} in {origin}"
        if name in result:
            raise UsageError(f"{what} is written twice, with '-' and with '_'; leave one out")
        result[name] = _read(cls, fields[name], value, what)
    return result


def read_config(path: str | Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file.

    Raises:
        ArtifactError: missing, unreadable or out of all proportion; see :func:`genkit.reading.read_yaml`.
        UsageError: the file holds something other than names and values.
    """
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{place(path)} must hold names and values, such as 'steps: 20'; got {type(values).__name__}")
    return values
