"""What Typer says of a wrong command line, in the form of genkit's own messages: given, allowed, what to do."""

from __future__ import annotations

from typing import Any

from genkit.errors import explain, shortened
from genkit.pipelines.request import Settings
from genkit.schema import Rule, kinds

_NUMBERS = {int: "a whole number", float: "a number"}


def usage_text(error: Any) -> str:
    """The message of one of Typer's usage errors. Kinds that are not known keep Typer's own words."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    param, option = getattr(error, "param", None), getattr(error, "option_name", None)
    if option is not None and context is None:  # the parser knows no context
        return f"{option} takes no value; leave it out" if "not take" in message else f"{option} needs a value"
    if context is None:
        return message
    command, path = context.command, context.command_path
    if option is not None:
        return _no_option(message, option, command, path)
    if param is not None:
        return _missing(param, path) if hasattr(error, "param_type") else _refused(error, param)
    commands = getattr(command, "commands", None)
    if commands and message.startswith("Missing command"):
        return f"{path} needs a command: {', '.join(commands)}; see {path} --help"
    if commands and message.startswith("No such command"):
        given = message.partition("'")[2].rpartition("'")[0]
        return explain(f"command of {path}", given, commands)
    return _too_many(message, command, path) if "unexpected extra argument" in message else message


def _no_option(message: str, option: str, command: Any, path: str) -> str:
    other = getattr(getattr(command, "callback", None), "settings", Settings).counterpart(option)
    if other:
        return f"{message.partition(' (Possible options')[0]}; {other}"
    return message if "(Possible options" in message else f"{message}; see {path} --help"


def _missing(param: Any, path: str) -> str:
    """What a command cannot do without, and what it is."""
    is_flag = param.param_type_name == "option"
    name = param.opts[0] if is_flag else (param.metavar or param.name.upper())
    said = (param.help or "").rstrip(".")
    return f"{path} needs {name}{f': {said}' if said else ''}; see {path} --help"


def _refused(error: Any, param: Any) -> str:
    """A value that is no number, or out of its range."""
    told = getattr(error.__cause__, "errors", None)
    kind = _NUMBERS.get(kinds(getattr(getattr(param, "type_descriptor", None), "annotation", None))[0])
    if told is None or kind is None:
        return error.format_message()
    return explain(param.opts[0], told()[0]["input"], Rule(low=param.min, high=param.max).words(kind))


def _too_many(message: str, command: Any, path: str) -> str:
    extra = message.rpartition("(")[2].rstrip(")").split()
    if "genkit" in extra:
        return f"{shortened(message)}; these are two commands, run them one after the other"
    if any(each.name in ("prompt", "prompts", "text") for each in command.params):
        return f'{shortened(message)}; a prompt of several words needs quotes, such as "a red circle"'
    taken = [each.metavar or each.name.upper() for each in command.params if each.param_type_name == "argument"]
    return f"{shortened(message)}; {path} takes {', '.join(taken) or 'options'} alone"
