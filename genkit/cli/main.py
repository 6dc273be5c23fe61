"""The ``genkit`` command: its subcommands, and the one place where exceptions become exit codes."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated

import typer

from genkit import __version__
from genkit.cli import (
    compare,
    demo,
    distill,
    doctor,
    families,
    inspect,
    interrupt,
    lora,
    methods,
    models,
    recipes,
    train,
    tune,
)
from genkit.cli.interrupt import INTERRUPTED, TERMINATED
from genkit.cli.output import (
    OutputError,
    abandon,
    any_encoding,
    close_document,
    complain,
    flush,
    one_document,
    one_line,
    say,
)
from genkit.cli.repeats import tell_repeats
from genkit.cli.tasks import task_commands
from genkit.cli.usage import usage_text
from genkit.errors import GenkitError

app = typer.Typer(
    name="genkit",
    help="Better attention for Hugging Face Diffusers pipelines.",
    epilog="Exit codes: 0 done, 2 wrong usage, 1 failed, 130 interrupted. "
    "Add --debug to any command for the traceback of an unexpected error.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in task_commands():
    app.command(name)(command)
for command in (
    compare.compare,
    inspect.inspect,
    tune.tune,
    models.models,
    methods.methods,
    families.families,
    recipes.recipes,
    demo.demo,
    doctor.doctor,
):
    app.command(command.__name__)(command)
train.app.command("distill")(distill.distill)
app.add_typer(train.app, name="train")
app.add_typer(lora.app, name="lora")
tell_repeats(app)


class Terminated(BaseException):
    """The process was asked to end (SIGTERM): temporary files are removed on the way out."""


def _print_version(asked: bool) -> None:
    if asked:
        say(f"genkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    """Better attention for Hugging Face Diffusers pipelines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong usage, 1 failed, 130 interrupted, 143 terminated.

    Every exception ends here as one line on standard error; with ``--json`` also as ``"error"`` and ``"exit_code"`` in
    the one document on standard output, beside what the command had to tell before it failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    options = given[: given.index("--")] if "--" in given else given
    with one_document("--json" in options):
        return _run(given, options)


def _run(given: list[str], options: list[str]) -> int:
    debug = "--debug" in options
    if debug:
        given.remove("--debug")
    try:
        any_encoding()
        with _terminable():
            code = app(given, prog_name="genkit", standalone_mode=False)
            if code != INTERRUPTED:
                close_document()
            flush()
    except OutputError as error:
        abandon()
        return _fail(error, error.exit_code, [], debug)
    except GenkitError as error:
        return _fail(error, error.exit_code, options, debug)
    except (KeyboardInterrupt, Terminated) as error:
        return _fail("interrupted", INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED, options, False)
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own usage errors
            return _fail(usage_text(error), error.exit_code, options, debug)
        hint = "" if debug else "; run with --debug for the traceback"
        return _fail(f"unexpected {type(error).__name__}: {error}{hint}", 1, options, debug)
    if code == INTERRUPTED:
        return _fail("interrupted", INTERRUPTED, options, False)
    return code if isinstance(code, int) else 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` meanwhile. Signals belong to the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _fail(error: object, code: int, options: Sequence[str], debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    message = one_line(error)
    with interrupt.telling() if code in (INTERRUPTED, TERMINATED) else nullcontext(True) as ours:
        if ours and "--json" in options:
            try:
                close_document(error=message, exit_code=code)
                flush()
            except OutputError:
                abandon()
        if ours:
            complain(f"genkit: error: {message}")
    return code


if __name__ == "__main__":
    sys.exit(main())
