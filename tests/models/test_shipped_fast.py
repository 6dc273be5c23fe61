"""The few-step LoRA that ships with toy-video: --fast takes it, and what it makes is what was asked for."""

from __future__ import annotations

from genkit.models import locate
from genkit.models.check import FAST, fingerprint
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.world.judge import judge_clip


def test_fast_draws_the_colours_that_were_asked_for():
    prompt = "a red circle moves right on a blue background"
    request = resolve(GenerateSettings.from_mappings(("the test", {"prompt": prompt, "fast": True, "seed": 0})))
    assert (request.settings.steps, request.settings.guidance_scale) == (6, 1.0)
    seen = judge_clip(Session(request).run().frames)
    assert seen.background == "blue" and {actor.colour for actor in seen.actors} == {"red"}


def test_the_lora_beside_a_model_is_no_part_of_its_fingerprint(tmp_path):
    import shutil

    folder = locate("toy-video").path
    bare = tmp_path / "model"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns(FAST))
    assert not (bare / FAST).exists() and fingerprint(bare) == fingerprint(folder)
