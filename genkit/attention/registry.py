"""Names of methods, methods from text, and what `genkit.methods()` lists.

A method is a folder here: ``genkit/attention/radial/`` registers ``radial`` when it is imported. Shared mathematics are
plain modules beside the folders. Other packages offer methods through entry points of the group ``genkit.methods``: the
module of one registers the method of its name when it is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from genkit import plugins
from genkit.attention.method import Method
from genkit.errors import ArtifactError, UsageError, explain
from genkit.plugins import PluginError

_METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a frozen :class:`Method` dataclass known under ``name``.

    Raises:
        UsageError: not such a class, or the name belongs to a method of genkit, of another package or of a script; the
            message says to whom.
    """

    def enter(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Method) and dataclasses.is_dataclass(cls)):
            raise UsageError(f"{cls!r} cannot be registered: a method is a frozen dataclass derived from Method")
        hidden = sorted({field.name for field in dataclasses.fields(cls)} & set(dir(Method)))
        if hidden:
            raise UsageError(f"{name}: settings named {', '.join(hidden)} hide what every method has; rename them")
        owner = _other_owner(name, cls)
        if owner is not None:
            raise UsageError(f"the name {name!r} already belongs to {owner}; choose another")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return enter


def _other_owner(name: str, cls: type[Method]) -> str | None:
    """Who has the name of a method, when it is not the class itself; also of those not imported yet."""
    known = _METHODS.get(name)
    if known is not None:
        same = (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
        return None if same else f"{known.__module__}.{known.__qualname__}"
    if f"{cls.__module__}.".startswith("genkit.attention."):
        return None
    if name in _folders():
        return f"genkit.attention.{name}"
    plugin = plugins.found(plugins.METHODS).get(name)
    return str(plugin) if plugin is not None and not plugin.owns(cls.__module__) else None


def _folders() -> set[str]:
    """Names of the methods' folders, found without importing them."""
    import genkit.attention

    return {found.name for found in pkgutil.iter_modules(genkit.attention.__path__) if found.ispkg}


@functools.cache
def _offered() -> dict[str, plugins.Plugin]:
    """Methods of other packages whose names are free."""
    offered = dict(plugins.found(plugins.METHODS))
    for name in sorted(_folders() & set(offered)):
        plugins.left_out(f"{offered.pop(name)} is left out: the name {name!r} belongs to genkit.attention.{name}")
    return offered


def names() -> list[str]:
    """Names of all methods, sorted. Imports none of them: one of another package may turn out to be broken."""
    return sorted(_folders() | set(_METHODS) | set(_offered()))


def usable() -> list[str]:
    """Names of all methods that can be imported. A broken one of another package is left out with a warning."""
    found = []
    for name in names():
        try:
            method_class(name)
        except PluginError as error:
            plugins.left_out(error)
        else:
            found.append(name)
    return found


def method_class(name: str) -> type[Method]:
    """The class registered under ``name``.

    Raises:
        UsageError: unknown name; the message lists the valid ones.
        PluginError: the name belongs to another package that cannot be imported or does not register it.
    """
    if name not in _METHODS:
        if name in _folders():
            importlib.import_module(f"genkit.attention.{name}")
            if name not in _METHODS:
                raise UsageError(
                    f"genkit/attention/{name} registers no method called {name!r}: use @register({name!r})"
                )
        elif name in _offered():
            _offered()[name].load()
            if name not in _METHODS:
                raise PluginError(f"{_offered()[name]} registers no method called {name!r}: use @register({name!r})")
        else:
            raise UsageError(explain("attention method", name, names()))
    return _METHODS[name]


@dataclass(frozen=True)
class FieldInfo:
    """One setting of a method: its name, type as text, default as text and meaning."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class MethodInfo:
    """What `genkit.methods()` says about a method."""

    name: str
    summary: str
    roles: tuple[str, ...]
    needs_grid: bool
    trainable: bool
    exact: bool
    source: str
    fields: tuple[FieldInfo, ...]


def _type_text(hint: Any) -> str:
    if hint is type(None):
        return "none"
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(part) for part in typing.get_args(hint))
    if origin is Literal:
        return " | ".join(str(value) for value in typing.get_args(hint))
    if origin is tuple:
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return f"{_type_text(parts[0])} (x-separated)"
        return "x".join(_type_text(part) for part in parts)
    return getattr(hint, "__name__", str(hint))


def _words(hint: Any) -> str:
    """The values of a type in words, for messages: ``"a number, all, or 3 of these joined by x (3x5x5)"``."""
    parts, tuples = [], []
    union = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for part in union:
        if typing.get_origin(part) is Literal:
            parts += map(str, typing.get_args(part))
        elif typing.get_origin(part) is tuple:
            tuples.append(typing.get_args(part))
        else:
            parts.append(_KINDS.get(part) or _type_text(part))
    if _KINDS[float] in parts and _KINDS[int] in parts:
        parts.remove(_KINDS[int])
    several = [_several(kinds, parts) for kinds in tuples]
    return ", or ".join([*([", ".join(dict.fromkeys(parts))] if parts else []), *several])


def _several(kinds: tuple[Any, ...], others: list[str]) -> str:
    """What a tuple of values looks like as text, beside the single values that are allowed too."""
    open_end = kinds[-1] is Ellipsis
    each = list(dict.fromkeys(_words(kind) for kind in kinds if kind is not Ellipsis))
    known = others and set(", ".join(each).split(", ")) <= {*others, _KINDS[int]}
    what = "of these" if known else f"values, each {' or '.join(each)},"
    shown = ["true", "false", "true"] if bool in kinds else ["3", "5", "7"]
    example = "x".join(shown[: 2 if open_end else len(kinds)])
    return f"{'several' if open_end else len(kinds)} {what} joined by x ({example})"


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}


def describe_method(name: str) -> MethodInfo:
    """The listing entry of one method."""
    cls = method_class(name)
    hints = typing.get_type_hints(cls)
    fields = []
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only):  # what methods share comes last
        missing = field.default is dataclasses.MISSING
        text = field.metadata.get("help", "")
        fields.append(
            FieldInfo(field.name, _type_text(hints[field.name]), "required" if missing else str(field.default), text)
        )
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    return MethodInfo(name, summary, cls.roles, cls.needs_grid, cls.trainable, cls.exact, cls.source, tuple(fields))


def methods() -> list[MethodInfo]:
    """Everything that is registered, by name. A broken method of another package is left out with a warning."""
    return [describe_method(name) for name in usable()]


def _parse_number(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from error


def _parse_text(hint: Any, text: str) -> Any:
    """A value of the type ``hint`` from text; ValueError when it does not fit."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        # any text is a text, so what says more goes first
        for part in sorted(typing.get_args(hint), key=lambda part: part is str):
            try:
                return _parse_text(part, text)
            except ValueError:
                continue
        raise ValueError(f"{text!r} is none of {_type_text(hint)}")
    if origin is Literal:
        for value in typing.get_args(hint):
            if str(value).lower() == text.lower():
                return value
        raise ValueError(f"{text!r} is none of {_type_text(hint)}")
    if origin is tuple:
        parts = [part for part in text.strip("()[] ").replace("x", " ").replace(",", " ").split() if part]
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(parts)
        if len(parts) != len(kinds) or len(parts) < 2:
            raise ValueError(f"{text!r} does not have the form {_type_text(hint)}")
        return tuple(_parse_text(kind, part) for kind, part in zip(kinds, parts, strict=True))
    if hint is type(None):
        if text.lower() in ("none", ""):
            return None
        raise ValueError(f"{text!r} is not none")
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError(f"{text!r} is not true or false")
    if hint in (int, float):
        return _parse_number(hint, text)
    return text


def _fits(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in typing.get_args(hint))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        return len(value) == len(kinds) and all(_fits(kind, part) for kind, part in zip(kinds, value, strict=True))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def build(name: str, args: Mapping[str, Any] | None = None) -> Method:
    """A method from its name and settings given as text (or as values of the right type).

    Args:
        name: a name from :func:`names`.
        args: setting -> value. Texts are parsed into the field's type: numbers, ``true``/``false``, ``none``, and
            per-axis values as ``allx7x7``. Lists become tuples, so values read from YAML work as they are.

    Raises:
        UsageError: unknown method or setting (the message lists the valid ones), a value of the wrong type, a missing
            required setting, or values the method itself refuses.
    """
    cls = method_class(name)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, given in dict(args or {}).items():
        if key not in fields:
            raise UsageError(explain(f"setting of {name}", key, list(fields)))
        hint = hints[key]
        value = tuple(given) if isinstance(given, list) else given
        if isinstance(value, str):
            try:
                value = _parse_text(hint, value.strip())
            except ValueError as error:
                raise UsageError(explain(f"{name}.{key}", given, _words(hint))) from error
        elif not _fits(hint, value):
            raise UsageError(explain(f"{name}.{key}", given, _words(hint)))
        values[key] = value
    missing = [
        key
        for key, field in fields.items()
        if key not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{name} needs {', '.join(missing)}: give it as a setting, for instance {missing[0]}=...")
    return cls(**values)


def trained(name: str, weights: str | Path) -> Method:
    """A method as it was trained; see :func:`trained_settings`."""
    return build(name, trained_settings(name, weights) | {"weights": str(weights)})


def trained_settings(name: str, weights: str | Path) -> dict[str, Any]:
    """The settings of a method that its weights file tells.

    Raises:
        ArtifactError: no weights file of genkit, or one without weights of this method.
    """
    from genkit.attention.weights import PatchWeights

    made_with = PatchWeights.settings_of(weights)
    if name not in made_with:
        raise ArtifactError(f"{weights} holds weights of {', '.join(made_with) or 'no method'}, not of {name}")
    return made_with[name]
