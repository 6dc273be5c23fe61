"""The demo's live tab: frames while more are made, a prompt that takes over, an end that keeps what there is."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from genkit.demo.engine import live as engine
from genkit.demo.engine.desk import Worker
from genkit.demo.engine.job import DONE, FAILED, STOPPED, Job
from genkit.demo.engine.visitors import Visitors
from genkit.errors import UsageError
from genkit.media import read_media
from genkit.media.files import read_settings
from genkit.pipelines.load import load
from genkit.pipelines.settings import GenerateSettings
from genkit.streaming import Stream

FIRST, NEXT = "a red circle moves right on a blue background", "a green square moves left on a blue background"
CALL = {"model": "toy-video", "steps": 2, "height": 64, "width": 64, "seed": 3, "stream": True, "num_frames": 65}


@pytest.fixture
def visitor(tmp_path):
    return Visitors(tmp_path).of(None)


def made(visitor, on_chunk=lambda job, count: None, **changes):
    """Run a stream to its end; ``on_chunk`` is called before each."""
    settings = GenerateSettings(**{"prompt": FIRST, **CALL, **changes})
    job, seen = Job("live", [settings]), []
    real, counted = engine._Made._turn, []

    def turn(self, stream):
        on_chunk(job, len(counted))
        counted.append(stream.frames)
        real(self, stream)

    tell = job.tell

    def note(**told):
        if told.get("preview") is not None:
            seen.append(told["preview"])
        tell(**told)

    job.tell = note
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Made, "_turn", turn)
        from genkit.demo.engine.desk import _guarded

        _guarded(job, lambda job: engine.live(job, visitor, Worker(), settings))
    return job.state, seen, counted


def test_a_prompt_takes_over_and_the_result_tells_how_to_repeat_it(visitor):
    state, seen, begins = made(visitor, lambda job, count: job.say(NEXT) if count == 2 else None)
    assert state.phase == DONE, state.message
    (result,) = state.made
    clip = read_media(result.path)
    assert clip.frames.shape == (65, 64, 64, 3) and seen and seen[0].shape == (64, 64, 3)
    settings = read_settings(result.path)["settings"]
    assert settings["stream"] and settings["prompt"] == FIRST
    assert list(settings["then"]) == [NEXT] and list(settings["at"]) == [str(begins[2])]

    stream = Stream(
        load("toy-video"), {0: FIRST, begins[2]: NEXT}, steps=2, height=64, width=64, seed=3, guidance_scale=4.0,
        max_sequence_length=64,
    )  # fmt: skip
    again = np.concatenate([next(stream).frames for _ in begins])[:65]
    assert np.abs(again.astype(int) - clip.frames).mean() < 4, "but for what the video file loses"
    assert any((seen[0] == frame).all() for frame in again)


def test_the_end_keeps_what_was_made_and_nothing_made_is_stopped(visitor):
    state, _, begins = made(visitor, lambda job, count: job.stop() if count == 2 else None)
    assert state.phase == DONE and state.made[0].size == (begins[2], 64, 64)
    assert len(visitor.entries) == 1 and visitor.entries[0].settings["num_frames"] == begins[2]
    state, _, _ = made(visitor, lambda job, count: job.stop())
    assert state.phase == STOPPED and not state.made and len(visitor.entries) == 1


def test_only_the_last_words_are_heard_once():
    job = Job()
    assert job.heard() is None
    job.say("one")
    job.say("two")
    assert job.heard() == "two" and job.heard() is None


def test_more_frames_than_one_stream_may_hold_are_refused_with_the_number(visitor, monkeypatch):
    monkeypatch.setattr(engine, "MOST_BYTES", 20 * 3 * 64 * 64)
    state, _, _ = made(visitor)
    assert state.phase == FAILED and "Frames: got 65, allowed here at this size: up to 20" in state.message


def test_frames_are_shown_at_their_rate_and_not_after_the_end():
    job, told = Job(), []
    job.tell = lambda **changes: told.append(time.monotonic())
    frames = np.zeros((40, 4, 4, 3), np.uint8)
    with engine.Player(job, 50) as player:
        player.show(frames)
        time.sleep(0.3)
    count = len(told)
    assert 4 < count < 40, "0.3 s are 15 frames"
    time.sleep(0.1)
    assert len(told) == count
    assert told[-1] - told[0] >= 0.9 * (count - 1) / 50


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("gradio")
    from genkit.demo.engine.desk import Desk
    from genkit.demo.options import Offer
    from genkit.demo.page import Page

    root = tmp_path_factory.mktemp("live")
    return Page(Offer(root, ("toy-image", "toy-video")), Visitors(root), Desk())


def test_the_form_becomes_a_stream_and_words_need_one_that_runs(page):
    import gradio as gr

    tab = next(each for each in page.tabs if each.name == "live")
    visitor, request = page.visitors.of(None), SimpleNamespace(headers={}, session_hash="a session")
    form = {name: control.value for name, control in tab.form.items()} | {"seed": 5}
    (wanted,) = tab.settings(form, visitor)
    assert wanted.stream and not wanted.fast and wanted.num_frames == 97 and wanted.model == "toy-video"
    with pytest.raises(UsageError, match="Frames: got"):
        tab.settings(form | {"num_frames": "1000000"}, visitor)
    with pytest.raises(gr.Error, match="press Begin first"):
        tab._say(request, visitor.token, NEXT)
    visitor.job = Job("live", [wanted])
    for wrong, words in (("  ", "a sentence"), ("(red:1.3) circle", "(?i)weights in prompts")):
        with pytest.raises(gr.Error, match=words):
            tab._say(request, visitor.token, wrong)
    assert visitor.job.heard() is None
    assert tab._say(request, visitor.token, NEXT) == "" and visitor.job.heard() == NEXT
    program = page.visitors.of(page.visitors.name_of("a session"))
    program.job = Job("live", [wanted])
    assert tab._say(request, None, NEXT) == "" and program.job.heard() == NEXT and visitor.job.heard() is None
    visitor.job.tell(phase=DONE)
    with pytest.raises(gr.Error, match="press Begin first"):
        tab._say(request, visitor.token, NEXT)
