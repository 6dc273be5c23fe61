"""With ``--json`` standard output holds one JSON document, however a command ends."""

from __future__ import annotations

import json
import sys

import pytest
import typer

from genkit.cli import main as cli_main
from genkit.cli.output import print_json, print_table, say
from genkit.errors import ArtifactError, GenkitError


def fails_after_its_result():
    print_json({"found": 1})
    raise GenkitError("a part failed")


def fails_between_lines():
    say("what was measured:")
    print_table(["name", "seconds"], [("dense", 1)])
    print_json({"rows": ["dense"]})
    raise ArtifactError("the disk is full")


def interrupted_after_its_result():
    print_json({"found": 1})
    raise KeyboardInterrupt


def ends_with_a_code():
    print_json({"ok": False})
    raise typer.Exit(1)


def breaks():
    print_json({"found": 1})
    raise ZeroDivisionError("surprise")


def tells_twice():
    print_json({"one": 1})
    say("beside it")
    print_json({"two": 2})


CASES = [
    (fails_after_its_result, 1, {"error": "a part failed", "exit_code": 1, "found": 1}),
    (fails_between_lines, 1, {"error": "the disk is full", "exit_code": 1, "rows": ["dense"]}),
    (interrupted_after_its_result, 130, {"error": "interrupted", "exit_code": 130, "found": 1}),
    (ends_with_a_code, 1, {"ok": False}),
    (
        breaks,
        1,
        {
            "error": "unexpected ZeroDivisionError: surprise; run with --debug for the traceback",
            "exit_code": 1,
            "found": 1,
        },
    ),
    (tells_twice, 0, {"one": 1, "two": 2}),
]


@pytest.fixture
def command(monkeypatch):
    def put(body):
        app = typer.Typer()

        @app.command()
        def only(json: bool = False) -> None:
            body()

        monkeypatch.setattr(cli_main, "app", app)

    return put


@pytest.mark.parametrize(("body", "code", "document"), CASES, ids=[case[0].__name__ for case in CASES])
def test_one_document_whatever_happens(command, capsys, body, code, document):
    command(body)
    assert cli_main.main(["--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == document
    assert ("error" in document) == ("genkit: error: " in err)
    if body is fails_between_lines:
        assert "what was measured:" in err and "dense" in err


@pytest.mark.parametrize("body", [fails_between_lines, tells_twice], ids=lambda body: body.__name__)
def test_without_it_results_stay_on_standard_output_at_once(command, capsys, body):
    command(body)
    cli_main.main(["--no-json"])
    out, err = capsys.readouterr()
    told = "what was measured:" if body is fails_between_lines else "beside it"
    assert told in out and told not in err and '": ' in out


def test_a_document_is_of_one_command(command, capsys):
    command(fails_after_its_result)
    cli_main.main(["--json"])
    capsys.readouterr()
    command(lambda: None)
    assert cli_main.main(["--json"]) == 0
    print_json({"own": 1})
    assert json.loads(capsys.readouterr().out) == {"own": 1}


def test_training_weights_takes_it_too(monkeypatch, capsys, tmp_path):
    from genkit.training.tasks import run

    def train_weights(description, arguments, program):
        print("step 1", file=sys.stdout)
        (tmp_path / "training.json").write_text('{"steps": 2}')
        assert arguments == ["keys", "--steps", "2"]
        return tmp_path / "training.json"

    monkeypatch.setattr(run, "train_weights", train_weights)
    assert cli_main.main(["train", "weights", "keys", "--steps", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"report": str(tmp_path / "training.json"), "steps": 2} and "step 1" in err
    monkeypatch.undo()
    for given in (["keys", "--steps", "0"], ["nope"], ["keys", "--lr", "nan"]):
        assert cli_main.main(["train", "weights", *given, "--json"]) == 2
        out, err = capsys.readouterr()
        assert json.loads(out)["exit_code"] == 2 and json.loads(out)["error"] in err
