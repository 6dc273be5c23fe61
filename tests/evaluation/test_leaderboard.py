"""The leaderboard: a small run, going on after a stop, who is beaten, and the pages that are made of it."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.editing.store import Store
from benchmarks.leaderboard import boards, pages, report, run
from benchmarks.leaderboard.boards import Board, Entry
from benchmarks.methods.cases import Case
from genkit.attention import registry

NEAR = ("neighborhood", {"size": "1x4x4", "stride": "1x4x4"})
FULL = ("neighborhood", {"size": "all"})
FACTS = {"gpu": None, "cpu": "x", "threads": 1, "cores": 1, "python": "3", "versions": {}, "commit": "c"}


def with_boards(monkeypatch, board):
    for module in (boards, run, report, pages):
        monkeypatch.setattr(module, "BOARDS", {"small": board})


def started(tmp_path, *more):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    told = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out"), *more]
    return run.run(parser.parse_args(told))


def filled(tmp_path, rows):
    """A store with rows of (entry or None, FLOPs, PSNR of two prompts)."""
    store = Store(tmp_path / "leaderboard.json")
    store.facts = FACTS
    for entry, flops, psnr in rows:
        row = store.row("toy-dit", "small", entry.title if entry else "dense", {"dtype": "float32"})
        for number, value in enumerate(psnr):
            values = {
                "attention ms": 20 if np.isnan(flops) else flops,
                "ms": 1.0,
                "all": number == 0,
                "base": 1.0,
            }
            values |= {} if np.isnan(flops) else {"executed": flops}
            row.add(values | ({"psnr": value, "ssim": 90.0} if entry else {}))
    return store


@pytest.mark.parametrize("model", ["toy-image", "toy-dit"])
def test_a_small_run_measures_every_row_and_a_second_one_nothing(model, monkeypatch, tmp_path, capsys):
    with_boards(monkeypatch, Board("small", Case(model, 1, 64, 2, 4, 0.5, 1.0, 1.0, 1, {}), (NEAR, FULL)))
    assert started(tmp_path, "--prompts", "2") == 0
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert text in capsys.readouterr().out
    store = Store(tmp_path / "out/leaderboard.json")
    found = {place.entry.title: place for place in report.places(store, "small")}
    assert len(found) == 4 and all(place.count == 2 for place in found.values())
    near, full = (found[Entry(method, "0:").title] for method in (NEAR, FULL))
    late = found[Entry(NEAR, "1:").title]
    assert full.flops == pytest.approx(100) and full.psnr[0] > 60 and full.change[0] == 0
    assert near.flops < late.flops < 100 and near.psnr[0] < late.psnr[0] < full.psnr[0]

    before = json.loads((tmp_path / "out/leaderboard.json").read_text())["rows"]
    monkeypatch.setattr("benchmarks.methods.outputs.Pictures.again", None)
    assert started(tmp_path, "--prompts", "2") == 0
    assert json.loads((tmp_path / "out/leaderboard.json").read_text())["rows"] == before


def test_a_row_is_best_when_none_as_cheap_is_as_like_and_unknown_costs_never_are(monkeypatch, tmp_path):
    cheap, dear, beaten = Entry(NEAR, "0:"), Entry(FULL, "0:"), Entry(NEAR, "1:")
    unknown = Entry(("agent", {"agents": "merge"}), "0:")
    board = Board("small", Case("toy-dit", 1, 64, 2, 4, 0.5, 1.0, 1.0, 1, {}), (NEAR, FULL, unknown.method))
    with_boards(monkeypatch, board)
    rows = [(None, 100, (0, 0)), (cheap, 20, (20, 24)), (dear, 60, (30, 34)), (beaten, 40, (19, 21))]
    store = filled(tmp_path, [*rows, (unknown, float("nan"), (50, 50))])
    found = report.places(store, "small")
    assert [place.entry for place in found] == [cheap, beaten, dear, unknown]
    assert [place.best for place in found] == [True, False, True, False]
    assert found[0].psnr == (22.0, pytest.approx(2.0)) and found[0].attention == pytest.approx(0.2)
    assert "| unknown |" in report.text(store)


def test_pages_are_made_once_and_made_anew_in_place(monkeypatch, tmp_path):
    board = Board("small", Case("toy-dit", 1, 64, 2, 4, 0.5, 1.0, 1.0, 1, {}), (NEAR, FULL))
    with_boards(monkeypatch, board)
    rows = [(None, 100, (0, 0)), (Entry(NEAR, "0:"), 20, (20, 24)), (Entry(NEAR, "1:"), 60, (30, 34))]
    filled(tmp_path, rows)
    docs = tmp_path / "docs"
    (docs / "methods").mkdir(parents=True)
    (docs / "img").mkdir()
    (docs / "methods/neighborhood.md").write_text("# Neighborhood\nwords\n\n## Checked\nall\n")
    store = filled(tmp_path, rows)
    pages.render(store, docs)
    told = (docs / "methods/neighborhood.md").read_text()
    assert (
        told.startswith("# Neighborhood\nwords\n\n") and "| small |" in told and "22.00" in told and "32.0" not in told
    )
    assert "img/leaderboard-small.png" in (docs / "leaderboard.md").read_text()
    assert told.endswith(f"{pages.END}\n\n## Checked\nall\n")
    pages.render(store, docs)
    assert (docs / "methods/neighborhood.md").read_text() == told


def test_what_cannot_be_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        started(tmp_path, "--prompts", "0")
    assert "--prompts: got '0', allowed: a whole number of at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has no rows"):
        started(tmp_path, "--docs", str(tmp_path))
    with pytest.raises(SystemExit, match="without the other"):
        pages.quoted(f"words\n{pages.BEGIN}\n", "quote")


@pytest.mark.parametrize("name", list(boards.BOARDS))
def test_boards_have_methods_that_exist_once_each_and_have_pages(name):
    entries = boards.BOARDS[name].entries
    assert len({entry.title for entry in entries}) == len(entries)
    docs = Path(__file__).parents[2] / "docs/methods"
    for entry in entries:
        assert registry.build(*entry.method) and (docs / f"{entry.method[0]}.md").exists()
