"""When a run calls the model a second time, and what is said of guidance that does nothing; without weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from genkit.errors import UsageError
from genkit.pipelines import guidance
from genkit.pipelines.settings import GenerateSettings


def model(*names, call=None, defaults=None, **configs):
    """A stand-in for what the rules read of a model: its call's arguments with defaults, sidecar, configurations."""
    accepted = {name: SimpleNamespace(default=value) for name, value in names}
    sidecar = SimpleNamespace(call=call or {}, defaults=defaults or {})
    return SimpleNamespace(accepted=accepted, sidecar=sidecar, config=lambda part: configs.get(part, {}))


def plain(**more):
    return model(("guidance_scale", 5.0), **more)


def flux(embeds, true=1.0, **more):
    names = ("guidance_scale", 3.5), ("true_cfg_scale", true)
    return model(*names, transformer={"guidance_embeds": embeds}, **more)


def settings(**values):
    return GenerateSettings(**{"prompt": "a", **values})


@pytest.mark.parametrize(("scale", "guided"), [(None, False), (0.0, False), (1.0, False), (1.5, True)])
def test_a_usual_model_is_guided_above_one(scale, guided):
    assert guidance.guided(settings(guidance_scale=scale), plain()) is guided


def test_the_scale_of_the_sound_guides_too():
    for own, call, guided in (
        (1.0, {}, False),
        (2.0, {}, True),
        (None, {}, False),
        (1.0, {"audio_guidance_scale": 2}, True),
    ):
        both = model(("guidance_scale", 5.0), ("audio_guidance_scale", own), call=call)
        assert guidance.guided(settings(guidance_scale=1.0), both) is guided
    assert not guidance.guided(settings(guidance_scale=1.0), plain(call={"audio_guidance_scale": 2}))


@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize(("scale", "negative", "guided"), [(2.0, "", True), (2.0, None, False), (1.0, "", False)])
def test_true_guidance_needs_a_scale_and_a_negative_prompt(embeds, scale, negative, guided):
    asked = settings(guidance_scale=1.0 if embeds else scale, negative_prompt=negative)
    assert guidance.guided(asked, flux(embeds, true=scale)) is guided


def test_true_guidance_without_a_scale_is_none():
    assert not guidance.guided(settings(negative_prompt="b"), flux(False))


def test_a_distilled_unet_is_called_once():
    distilled = plain(unet={"time_cond_proj_dim": 256})
    assert not guidance.guided(settings(guidance_scale=8.0, negative_prompt="b"), distilled)
    asked = settings(guidance_scale=8.0, negative_prompt="b")
    assert "once per step" in guidance.settle(asked, asked, distilled)[1][0]


def test_the_scale_goes_by_the_name_that_acts():
    assert guidance.argument_names(flux(False))["guidance_scale"] == ("true_cfg_scale",)
    for kind in (flux(True), plain()):  # the name of Stable Video Diffusion comes last
        assert guidance.argument_names(kind)["guidance_scale"] == ("guidance_scale", "max_guidance_scale")


def settled(given, which, scale):
    """``settle`` for what the user gave, with the scale that was filled in."""
    filled = given.replace(guidance_scale=scale)
    found, notes = guidance.settle(filled, given, which)
    return found.guidance_scale, found.negative_prompt, notes


def test_a_negative_prompt_of_a_usual_model_is_told_idle_only_without_guidance():
    assert settled(settings(negative_prompt="b"), plain(), 5.0) == (5.0, "b", ())
    assert settled(settings(), plain(), 1.0) == (1.0, None, ())
    assert settled(settings(negative_prompt=""), plain(), 1.0) == (1.0, "", ())
    assert settled(settings(negative_prompt="b"), model(), 1.0) == (1.0, "b", ())
    _, _, (note,) = settled(settings(negative_prompt="b"), plain(), 1.0)
    assert "this run's is 1;" in note
    _, _, (note,) = settled(settings(negative_prompt="b"), plain(), None)
    assert "this run's is 0;" in note
    with pytest.raises(UsageError, match="--guidance-scale 1 switches it off"):
        settled(settings(negative_prompt="b", guidance_scale=1.0), plain(), 1.0)


def test_true_guidance_that_nobody_asked_for_is_off():
    assert settled(settings(), flux(False), 3.5) == (1.0, None, ())
    # Asked for by the model's own files: it acts, and nothing is said.
    assert settled(settings(), flux(False, defaults={"guidance_scale": 4}), 4.0) == (4.0, "", ())
    assert settled(settings(), flux(False, call={"true_cfg_scale": 4}), 4.0) == (4.0, "", ())
    # A repeated run gives what the model's files had filled in.
    assert settled(settings(guidance_scale=4.0), flux(False, call={"true_cfg_scale": 4.0}), 4.0) == (4.0, "", ())


def test_true_guidance_that_was_asked_for_is_told():
    scale, negative, (note,) = settled(settings(guidance_scale=4.0), flux(False), 4.0)
    assert (scale, negative) == (4.0, "") and "scale 4 acts as true_cfg_scale against the empty negative" in note
    _, _, (note,) = settled(settings(guidance_scale=4.0, negative_prompt="b"), flux(False), 4.0)
    assert "against 'b'" in note
    assert settled(settings(guidance_scale=1.0), flux(False), 1.0) == (1.0, None, ())
    assert settled(settings(guidance_scale=0.0), flux(False), 0.0) == (0.0, None, ())
    assert "no effect" in settled(settings(negative_prompt="b"), flux(False), 1.0)[2][0]
    assert settled(settings(negative_prompt="b"), flux(False), 4.0) == (4.0, "b", ())
