"""Command-line options made from a settings dataclass, and the few options that several commands share."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

SHORT = {"prompt": ("-p",), "output": ("-o",), "model": ("-m",)}

Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable result on standard output.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing outputs.")]


def with_settings(settings: type) -> Callable[[Callable], Callable]:
    """Decorator for a Typer command: add one option per field of a settings dataclass.

    The command receives them as ``given``, a dict of the options that were really typed; the others keep their place
    in the order default, configuration file, command line.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    hints = typing.get_type_hints(settings)

    def decorate(command: Callable) -> Callable:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        added = [_parameter(field, hints[name]) for name, field in fields.items()]

        @wraps(command)
        def call(**values: Any) -> Any:
            typed = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in typed.items() if value is not None and value != []}
            return command(given=given, **values)

        call.__signature__ = inspect.Signature([*own, *added])
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        return call

    return decorate


def _parameter(field: dataclasses.Field, hint: Any) -> inspect.Parameter:
    """A keyword parameter with a Typer annotation. Its default is always None: "not typed" must differ from "typed
    the default"."""
    flag = "--" + field.name.replace("_", "-")
    kind = _base(hint)
    names = (flag, *SHORT.get(field.name, ()))
    if kind is bool and not field.metadata.get("one_way"):
        names = (f"{flag}/--no-{flag[2:]}",)
    option = typer.Option(*names, help=_help(field), rich_help_panel=field.metadata.get("group"), show_default=False)
    flagged = {bool: bool, int: int, float: float}.get(kind, str)
    annotation = list[str] | None if kind is tuple else flagged | None
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _base(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(_base(part) for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _help(field: dataclasses.Field) -> str:
    default = field.default
    if default in (None, (), False) or default is dataclasses.MISSING:
        return field.metadata["help"]
    return f"{field.metadata['help']} Default: {default}."
