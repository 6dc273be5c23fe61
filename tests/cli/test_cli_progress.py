"""How the time left is told: overall, from the first step on, and learning how long decoding takes."""

from __future__ import annotations

import re

import pytest

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
    assert "left" not in lines[0]  # one step of a moment says nothing yet
    assert all(re.search(r", about \d+ s left$", line) for line in lines[1:])


def test_what_comes_once_before_the_first_step_is_not_expected_of_every_step():
    """An edit of 9 s was said to take 39 s: its first step also reads the picture and the prompts."""
    now = 0.0
    forecast = Forecast(2, clock=lambda: now)
    forecast.begin()
    now = 6.0
    forecast.step(1, 10)
    assert forecast.left() is None
    for done in range(2, 11):
        now += 1
        forecast.step(done, 10)
        assert forecast.left() == pytest.approx(11 - done + 11)  # decoding counts as a step, of both
    now += 2
    forecast.finished()
    assert forecast.left() == pytest.approx(12)
    slow = Forecast(1, clock=lambda: now)
    slow.begin()
    now += 30
    slow.step(1, 4)
    assert slow.left() == 120  # too much rather than nothing for minutes
    now += 12
    slow.step(2, 4)
    assert slow.left() == pytest.approx(36)


def test_spans_of_time_are_said_in_words():
    assert [span(value) for value in (-1, 0.4, 59, 60, 200, 7500)] == [
        "0 s", "0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"
    ]  # fmt: skip
