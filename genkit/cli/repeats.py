"""Options that take one value: given twice the last one counts, as on any command line, and it is said; given none,
the option behind it is not taken for its value.

Scripts put their own options behind those of an alias, so that a repetition is no error. Options that are meant to be
repeated, and values of ``--config`` and ``--from``, which the command line overrides, are not looked at.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from genkit.cli.output import note
from genkit.errors import UsageError, shown


class Once(TyperCommand):
    """A command that tells which options of one value were given more than once."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser, whose options remember the values they were given."""
        parser = super().make_parser(ctx)
        for option in dict.fromkeys((*parser._long_opt.values(), *parser._short_opt.values())):
            if option.action == "store" and not getattr(option.obj, "multiple", False):
                _remember(option, ctx)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does; what was overridden is said once all is read.

        Raises:
            genkit.errors.UsageError: another option stands where a value should.
        """
        if not ctx.resilient_parsing:
            _check_values(self.get_params(ctx), args)
        left = super().parse_args(ctx, args)
        for name, values in ctx.meta.get(_GIVEN, {}).items():
            before = [value for value in dict.fromkeys(values[:-1]) if value != values[-1]]
            if before and not ctx.resilient_parsing:
                others = ", ".join(map(shown, before))
                note(f"note: {name} is given {len(values)} times: {shown(values[-1])} counts, not {others}")
        return left


_GIVEN = "genkit.given"


def _check_values(params: list[Any], args: list[str]) -> None:
    """Refuse ``--instruction --explain``: Typer takes the second for the value of the first."""
    options = [each for each in params if each.param_type_name == "option"]
    names = {name for each in options for name in (*each.opts, *each.secondary_opts)}
    taking = {name for each in options if not each.is_flag and not each.count for name in each.opts}
    left = iter(args)
    for each in left:
        if each == "--":
            return
        value = next(left, None) if each in taking else None
        if value is not None and value.startswith("--") and value.partition("=")[0] in names:
            raise UsageError(f"{each} needs a value, and {value} is an option; write {each}={value} if it is meant")


def _remember(option: Any, ctx: Any) -> None:
    process = option.process

    def remembered(value: Any, state: Any) -> None:
        name = max(option.obj.opts, key=len)
        ctx.meta.setdefault(_GIVEN, {}).setdefault(name, []).append(value)
        process(value, state)

    option.process = remembered


def tell_repeats(app: typer.Typer) -> None:
    """Let every command of an application, and of those in it, tell its repeated options."""
    for command in app.registered_commands:
        command.cls = Once
    for group in app.registered_groups:
        if group.typer_instance is not None:
            tell_repeats(group.typer_instance)
