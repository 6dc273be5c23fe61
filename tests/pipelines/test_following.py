"""A run that is followed and stopped, and a loaded model that serves other requests."""

from __future__ import annotations

import numpy as np
import pytest

from genkit.pipelines.following import Interrupted
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(scope="module")
def session(tiny_sd):
    made = Session(resolve(ask(tiny_sd)))
    made.load()
    return made


def ask(folder, **changes):
    return GenerateSettings(**{"prompt": "a red circle", "model": str(folder), "seed": 1, "steps": 4, **changes})


def test_latents_are_given_after_every_step_before_its_number(session):
    told = []
    session.run(progress=lambda *step: told.append(step), latents=lambda latents: told.append(tuple(latents.shape)))
    shapes = [each for each in told if each[0] == 1]
    assert len(shapes) == 4 and told[0] in shapes and told[1] == ("step", 1, 4)


def test_a_stop_ends_the_run_before_the_next_call_of_the_model_and_leaves_no_trace(session):
    before = session.run().frames
    steps = []
    hooks = [len(module._forward_pre_hooks) for module in session.pipeline.unet.modules()]
    with pytest.raises(Interrupted):
        session.run(progress=lambda *step: steps.append(step), stop=lambda: len(steps) >= 2)
    assert steps == [("step", 1, 4), ("step", 2, 4)]
    assert hooks == [len(module._forward_pre_hooks) for module in session.pipeline.unet.modules()]
    assert np.array_equal(session.run().frames, before)


def test_a_stop_after_the_last_step_ends_before_decoding(session):
    steps = []
    with pytest.raises(Interrupted):
        session.run(progress=lambda *step: steps.append(step), stop=lambda: ("decode", 0, 1) in steps)


def test_the_loaded_model_serves_another_request_as_a_new_one_would(session, tiny_sd):
    other = ask(tiny_sd, prompt="two blue squares", steps=3, seed=5)
    again = session.again(resolve(other))
    assert again.pipeline is session.pipeline
    fresh = Session(resolve(other)).run()
    reused = again.run()
    assert np.array_equal(reused.frames, fresh.frames) and reused.record == fresh.record


def test_another_model_or_way_of_loading_needs_another_session(session, tiny_sd, tiny_wan):
    assert session.again(resolve(ask(tiny_sd, vae_slicing=True))) is None
    assert session.again(resolve(ask(tiny_sd, dtype="bfloat16"))) is None
    assert session.again(resolve(ask(tiny_wan))) is None


def test_a_closed_session_gives_its_model_away_and_loads_it_again_when_asked(tiny_sd):
    session = Session(resolve(ask(tiny_sd, steps=1)))
    before = session.run().frames
    session.close()
    assert session.pipeline is None and session.again(resolve(ask(tiny_sd))) is None
    assert np.array_equal(session.run().frames, before)
