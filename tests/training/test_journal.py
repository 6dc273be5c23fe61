"""What a run tells where nobody sits at a terminal: whole lines, seldom, with the time left."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.training.engine import journal
from genkit.training.engine.journal import Journal, counting


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [1000.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_file_is_a_line_every_half_minute_with_the_time_left(tmp_path, capsys, clock):
    told = Journal(tmp_path, main=True, every=20, title="lora")
    told.begin(0, 0.0, {})
    for step in range(1, 9):
        clock[0] += 10
        told.step(step, 10.0 * step, 1e-4, step / 16, {"loss": 0.5})
    told.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "lora   6% 2.5 min left, step 1 loss 0.5000",
        "lora  31% 1.8 min left, step 5 loss 0.5000",
    ]


def test_other_processes_tell_nothing(tmp_path, capsys, clock):
    told = Journal(tmp_path, main=False, every=1)
    told.begin(0, 0.0, {})
    told.step(1, 1.0, 1e-4, 0.5, {"loss": 0.5})
    told.close()
    counting("made", main=False)(1, 1, "")
    assert capsys.readouterr().err == ""


def test_counting_tells_the_first_and_the_last_and_what_comes_half_a_minute_later(capsys, clock):
    show = counting("encoding")
    for done, name in enumerate(("a.png", "b.png", "c.png")):
        show(done, 3, name)
        clock[0] += 20
    show(3, 3, "")
    assert capsys.readouterr().err.splitlines() == [
        "encoding 0 of 3 a.png", "encoding 2 of 3 c.png", "encoding 3 of 3",
    ]  # fmt: skip


def test_counting_nothing_tells_nothing(capsys):
    counting("encoding")(0, 0, "")
    assert capsys.readouterr().err == ""


def test_figures_of_numpy_are_kept_as_plain_numbers(tmp_path):
    told = Journal(tmp_path, main=True, every=1)
    told.begin(0, 0.0, {})
    told.step(1, 1.0, 1e-4, 0.5, {"loss": np.float32(0.5), "share": np.float64(0.25)})
    told.close()
    assert {type(value) for value in told.smooth.values()} == {float}
