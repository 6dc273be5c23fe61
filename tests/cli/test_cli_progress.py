"""How the time left is told: overall, from the first step on, and learning how long decoding takes."""

from __future__ import annotations

import re

from genkit.cli.progress import RunProgress
from genkit.pipelines.forecast import Forecast, span


def test_the_forecast_counts_steps_outputs_and_decoding():
    now = 0.0
    forecast = Forecast(2, clock=lambda: now)
    assert forecast.left() is None and forecast.share == 0
    now = 100.0  # loading does not count
    forecast.begin()
    for done in (1, 2, 3):
        now += 10
        forecast.step(done, 4)
    assert forecast.share == 3 / 5 / 2 and forecast.left() == 30 * 7 / 3  # decoding counts as a step
    now += 10
    forecast.step(4, 4)
    now += 20  # and takes two
    forecast.finished()
    assert forecast.share == 0.5 and forecast.left() == 60
    now += 10
    forecast.step(1, 4)
    assert forecast.share == (1 + 1 / 6) / 2
    assert round(forecast.left()) == 50
    forecast.finished()
    assert forecast.share == 1 and forecast.left() == 0


def test_lines_without_a_terminal_tell_the_time_left_of_all_outputs(capsys):
    progress = RunProgress(2)
    with progress.shown():
        progress.begin()
        for done in range(1, 9):
            progress("step", done, 8)
        progress("decode", 0, 1)
        progress.finished()
        progress("step", 1, 8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        *(f"genkit: output 1/2: step {done}/8" for done in (1, 2, 4, 6, 8)), "genkit: output 2/2: step 1/8"
    ]  # fmt: skip
    assert all(re.search(r", about \d+ s left$", line) for line in lines)


def test_spans_of_time_are_said_in_words():
    assert [span(value) for value in (-1, 0.4, 59, 60, 200, 7500)] == [
        "0 s", "0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"
    ]  # fmt: skip
