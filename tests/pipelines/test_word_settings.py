"""Word weights in the prompts of `genkit generate`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from genkit.control.rules import FORMS
from genkit.errors import UsageError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings, WordSettings
from genkit.pipelines.tasks.edit.settings import EditSettings


def settings(folder, prompt, **changes):
    return GenerateSettings(prompt=prompt, model=str(folder), seed=1, steps=2, device="cpu", **changes)


def test_forms_are_those_of_the_rules():
    assert WordSettings.__dataclass_fields__["word_form"].metadata["rule"].choices == FORMS


def test_weights_act_and_the_text_is_stored_as_written(tiny_wan):
    plain = Session(resolve(settings(tiny_wan, "a red circle moves left")))
    frames = plain.run().frames
    weighed = plain.again(resolve(settings(tiny_wan, "a (red:9) circle (moves left:0@0.5-1)"))).run()
    neutral = plain.again(resolve(settings(tiny_wan, "a (red:1) circle moves left"))).run()
    assert np.array_equal(neutral.frames, frames) and not np.array_equal(weighed.frames, frames)
    assert weighed.settings.prompt == "a (red:9) circle (moves left:0@0.5-1)"
    assert "word_form" not in plain.run().record["settings"]
    assert np.array_equal(plain.run().frames, frames)


def test_weights_beside_a_sparse_method(tiny_wan):
    session = Session(resolve(settings(tiny_wan, "a (red:9) circle", attention="sliding_window")))
    report = session.run().report
    assert report["ran"] and not [line for line in session.warnings if "never" in line]


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ("a (red:big) circle", {}, "'big' .* is no number"),
        ("a (red:0@0.5-1) circle", {}, "makes pictures; leave the part out"),
        ("a (red:2) circle", {"word_frames": "0.5:1"}, "makes pictures"),
        ("a (red:2) circle", {"word_steps": "half"}, "--word-steps: got 'half'"),
        ("a (red:2) circle", {"word_form": "loud"}, "--word-form"),
        ("x" * 90 + " (red:2)", {"truncate_prompt": False}, "tokens, the model reads"),
    ],
)
def test_what_makes_no_sense_is_refused_before_weights_are_read(tiny_sd, prompt, changes, message):
    with pytest.raises(UsageError, match=message):
        resolve(settings(tiny_sd, prompt, **changes))


def test_the_weight_of_a_word_that_was_cut_off_goes_with_it(tiny_sd):
    request = resolve(settings(tiny_sd, "(a:2) " + "x" * 90 + " (red:2)", truncate_prompt=True))
    assert [rule.tokens for rule in request.prompts.rules] == [(1,)]


@pytest.mark.parametrize("method", ["infedit", "p2p", "vimaedit", "img2img"])
def test_weights_act_in_edits_and_words_are_found_behind_them(tiny_sd, tmp_path, method):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(picture)
    source = None if method == "img2img" else "a (red:5) circle"

    def asked(prompt, **changes):
        fixed = {"image": str(picture), "source_prompt": source, "method": method, "seed": 1, "steps": 2}
        return resolve(EditSettings(prompt=prompt, model=str(tiny_sd), device="cpu", **fixed, **changes))

    words = {} if method == "img2img" else {"words": ("blue",)}
    session = Session(asked("a blue circle", **words))
    plain, weighed = session.run(), session.again(asked("a (blue:3) circle", **words)).run()
    assert weighed.settings.prompt == "a (blue:3) circle" and not np.array_equal(weighed.frames, plain.frames)
    assert np.array_equal(session.again(asked("a (blue:1) circle", **words)).run().frames, plain.frames)
    told = [line for line in session.warnings if "weights in the source prompt have no effect" in line]
    assert bool(told) == (method != "img2img")


def test_a_method_on_the_same_layers_is_refused(tiny_flux):
    reason = "--attention sliding_window: the weight of a word, which acts in every layer .* take the weights out"
    with pytest.raises(UsageError, match=reason):
        resolve(settings(tiny_flux, "a (red:2) circle", attention="sliding_window", height=64, width=64))
    assert resolve(settings(tiny_flux, "a (red:2) circle", height=64, width=64)).prompts.rules
