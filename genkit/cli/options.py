"""Command-line options made from a settings dataclass, and the few options that several commands share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from genkit import schema
from genkit.errors import UsageError
from genkit.pipelines.request import flag

SHORT = {"prompt": ("-p",), "output": ("-o",), "model": ("-m",), "check_first": ("--check",)}
#: Parameter that holds what was written without a flag.
_ARGUMENT = "text"
#: A stream's prompt, and the setting that takes those that follow it.
FIRST, LATER = "prompt", "then"
NUMBERS = {int: "<int>", float: "<float>"}

Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable result on standard output.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing outputs.")]


def with_settings(settings: type, argument: str | None = None) -> Callable[[Callable], Callable]:
    """Decorator for a Typer command: add one option per field of a settings dataclass.

    The command receives them as ``given``, a dict of the options that were really typed; the others keep their place
    in the order default, configuration file, command line.

    Args:
        settings: the dataclass.
        argument: the field that may be written without its flag as well.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    kinds = {name: schema.kinds(schema.hints_of(settings)[name])[0] for name in fields}

    def decorate(command: Callable) -> Callable:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        repeated = {field.metadata["repeats"]: name for name, field in fields.items() if field.metadata["repeats"]}
        added = [_parameter(field, kinds[name], name in repeated) for name, field in fields.items()]
        if argument is not None:
            own.insert(0, _argument(fields[argument]))

        @wraps(command)
        def call(**values: Any) -> Any:
            typed = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in typed.items() if value is not None and value != []}
            written = values.pop(_ARGUMENT) if argument is not None else None
            if given.get("stream"):
                _take_following(written, given)
            for name, several in repeated.items():
                _take_repeated(name, several, given)
            if argument is not None:
                _take(argument, written, given)
            for name in given:
                if kinds[name] in NUMBERS:
                    given[name] = schema.number(given[name], kinds[name], flag(name))
            return command(given=given, **values)

        call.__signature__ = inspect.Signature([*own, *added])
        call.settings = settings
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        return call

    return decorate


def _take_repeated(name: str, several: str, given: dict[str, Any]) -> None:
    """One value of a flag is its setting's; more of them are the values of the setting that they are meant for."""
    values = given.pop(name, [])
    if len(values) == 1:
        given[name] = values[0]
    elif values:
        if several in given:
            raise UsageError(f"{flag(name)} several times and {flag(several)} say the same; leave one out")
        given[several] = values


def _parameter(field: dataclasses.Field, kind: type, repeated: bool = False) -> inspect.Parameter:
    """A keyword parameter with a Typer annotation. Its default is always None: "not typed" must differ from "typed
    the default". Numbers come as text, which :func:`genkit.schema.number` reads within limits."""
    names = (flag(field.name), *SHORT.get(field.name, ()))
    if kind is bool and not field.metadata["one_way"]:
        names = (f"{flag(field.name)}/--no-{flag(field.name)[2:]}",)
    option = typer.Option(
        *names, help=_help(field), rich_help_panel=field.metadata["group"], show_default=False,
        metavar=NUMBERS.get(kind),
    )  # fmt: skip
    annotation = list[str] | None if kind is tuple or repeated else (bool if kind is bool else str) | None
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _argument(field: dataclasses.Field) -> inspect.Parameter:
    """The parameter of a field that may be written without its flag."""
    said = field.metadata["help"].partition(".")[0].partition(";")[0]
    shown = typer.Argument(metavar=field.name.upper(), help=f"{said}; the same as {flag(field.name)}.")
    return inspect.Parameter(
        _ARGUMENT, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[str | None, shown]
    )


def _take_following(written: str | None, given: dict[str, Any]) -> None:
    """Of a stream's prompts those that follow the first; ``written`` is the one without a flag."""
    prompts = list(given.pop(FIRST, ()))
    first = prompts[: 1 if written is None else 0]
    if first:
        given[FIRST] = first
    if prompts[len(first) :]:
        given[LATER] = [*prompts[len(first) :], *given.get(LATER, ())]


def _take(name: str, value: str | None, given: dict[str, Any]) -> None:
    """Put what was written without a flag among the settings that were typed."""
    if value is None:
        return
    if name in given:
        raise UsageError(f"the {name} is given twice: as an argument and with {flag(name)}; leave one out")
    given[name] = value


def _help(field: dataclasses.Field) -> str:
    default = field.default
    text = field.metadata["help"].replace("[", r"\[")  # no markup
    if default is dataclasses.MISSING or default is False or default in (None, (), ""):  # 0 is a default to be told
        return text
    return f"{text} Default: {default}."
