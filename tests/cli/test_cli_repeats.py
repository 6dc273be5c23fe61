"""An option of one value that is given twice: the last counts, and it is said, on every command."""

from __future__ import annotations

import pytest
import typer

from genkit.cli import main as entry
from genkit.cli.main import main
from genkit.cli.repeats import Once, _check_values
from genkit.errors import UsageError


def _commands(group, path=()):
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]


COMMANDS = dict(_commands(typer.main.get_command(entry.app)))


def test_there_is_no_command_without_it():
    assert len(COMMANDS) > 20 and all(isinstance(command, Once) for command in COMMANDS.values())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_of_every_command_says_it_or_takes_all(path):
    """A value twice over, for each option that takes one; those meant to be repeated keep both in silence."""
    command, seen = COMMANDS[path], 0
    parser = command.make_parser(typer.Context(command))
    for option in dict.fromkeys(parser._long_opt.values()):
        if option.action not in ("store", "append"):
            continue
        name = max(option.obj.opts, key=len)
        fresh = typer.Context(command)
        values, _, _ = command.make_parser(fresh).parse_args([name, "first", name, "second"])
        found = fresh.meta.get("genkit.given", {})
        if option.action == "append":
            assert values[option.dest] == ["first", "second"] and name not in found
        else:
            assert values[option.dest] == "second" and found[name] == ["first", "second"]
        seen += 1
    assert seen == sum(hasattr(each, "is_flag") and not each.is_flag for each in command.params)


def test_the_last_counts_and_it_is_said(tiny_wan, capsys):
    dry = ["generate", "a red circle", "--model", str(tiny_wan), "--dry-run", "--json"]
    assert main([*dry, "--steps", "3", "--steps", "2"]) == 0
    told = capsys.readouterr()
    assert "--steps is given 2 times: '2' counts, not '3'" in told.err and '"steps": 2' in told.out
    assert main([*dry, "--steps", "2", "--steps", "2"]) == 0
    assert "times" not in capsys.readouterr().err


def test_what_is_meant_to_be_repeated_and_what_a_file_says_is_not_told(tiny_wan, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("steps: 3\n")
    config = ["--config", str(tmp_path / "a.yaml"), "--steps", "2"]
    assert main(["generate", "a red circle", "--model", str(tiny_wan), "--dry-run", *config]) == 0
    assert "times" not in capsys.readouterr().err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_option_takes_another_for_its_value(path):
    """Every option that takes a value, before an option with and without one; ``=`` says that it is meant."""
    command = COMMANDS[path]
    parser = command.make_parser(typer.Context(command))
    taking = [name for name, option in parser._long_opt.items() if option.takes_value]
    for name in taking:
        for behind in ("--help", f"{taking[-1]}=3"):
            with pytest.raises(UsageError, match=f"^{name} needs a value, and {behind} is an option"):
                command.make_context("it", [name, behind])
            _check_values(command.get_params(typer.Context(command)), [f"{name}={behind}", "--", name, behind])
            _check_values(command.get_params(typer.Context(command)), [name, "--unknown", "--help"])


def test_an_option_for_a_value_is_told_and_nothing_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--instruction", "--explain"]) == 2
    told = capsys.readouterr()
    assert "--instruction needs a value, and --explain is an option" in told.err and not list(tmp_path.iterdir())
