"""A wrong command line of any command: one line with what was given, what is allowed and what to do."""

from __future__ import annotations

import pytest
import typer

from genkit.cli.main import app, main


def walk(command, path=()):
    """(words, command) of every subcommand that runs something."""
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def groups(command, path=()):
    if hasattr(command, "commands"):
        yield path, command
        for name, each in command.commands.items():
            yield from groups(each, (*path, name))


ROOT = typer.main.get_command(app)
COMMANDS = list(walk(ROOT))
NUMBERS = [
    (path, each)
    for path, command in COMMANDS
    for each in command.params
    if each.param_type_name == "option" and (each.min is not None or each.max is not None)
]


def told(capsys, *words):
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genkit: error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("path", "command"), [each for each in COMMANDS if any(p.required for p in each[1].params)])
def test_what_a_command_cannot_do_without_is_said(capsys, path, command):
    needed = next(each for each in command.params if each.required)
    line = told(capsys, *path)
    assert f"genkit {' '.join(path)} needs " in line and f"; see genkit {' '.join(path)} --help" in line
    assert needed.help.rstrip(".") in line


@pytest.mark.parametrize(("path", "param"), NUMBERS)
def test_a_number_out_of_its_range_is_shown_with_the_range(capsys, path, param):
    for given in ("x", *([str(int(param.min) - 1)] if param.min is not None else [])):
        line = told(capsys, *path, f"{param.opts[0]}={given}")
        assert f"{param.opts[0]}: got '{given}', allowed: a whole number" in line
        assert all(str(end) in line for end in (param.min, param.max) if end is not None)


@pytest.mark.parametrize(("path", "group"), list(groups(ROOT)))
def test_a_group_names_its_commands(capsys, path, group):
    line = told(capsys, *path, "nope")
    assert "got 'nope'" in line and all(name in line for name in group.commands)
    if path:
        line = told(capsys, *path)
        assert "needs a command" in line and all(name in line for name in group.commands)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["doctor", "foo"], "(foo); genkit doctor takes options alone"),
        (["recipes", "a", "b"], "(b); genkit recipes takes NAME alone"),
        (["generate", "a", "red", "circle"], "(red circle); a prompt of several words needs quotes"),
        (["edit", "a.png", "a", "circle"], "(a circle); a prompt of several words needs quotes"),
        (["doctor", "genkit", "doctor"], "these are two commands"),
        (["generate", "--steps"], "--steps needs a value"),
        (["models", "--json=3"], "--json takes no value; leave it out"),
        (["inspect", "--tokens", "3"], "No such option: --tokens; see genkit inspect --help"),
        (["generate", "--stepz", "3"], "Possible options: --steps"),
    ],
)
def test_words_and_options_that_have_no_place(capsys, words, line):
    assert line in told(capsys, *words)


def test_training_of_weights_names_what_can_be_trained(capsys):
    line = told(capsys, "train", "weights")
    assert "genkit train weights needs METHOD: agent, bias" in line and "--help" in line
