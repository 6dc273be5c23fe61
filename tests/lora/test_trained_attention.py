"""A LoRA brings the attention it was trained through when asked, and other attention is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from genkit.errors import GenkitError, UsageError
from genkit.lora.facts import Facts
from genkit.lora.save import save_lora
from genkit.pipelines.request import COMMAND_LINE
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import run
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture
def lora(tmp_path):
    """A maker of LoRA files for the tiny model's first layer: (name, facts) -> path."""

    def make(name="l", folder="loras", **facts):
        random = torch.Generator().manual_seed(0)
        halves = torch.randn(2, 32, generator=random), torch.randn(32, 2, generator=random), 1
        weights = {"transformer": {"blocks.0.attn1.to_q": halves}}
        return save_lora(tmp_path / folder / f"{name}.safetensors", weights, Facts(**facts))

    return make


RADIAL = {"attention": "neighborhood", "attention_args": {"size": "allx1x1"}, "schedule": "layers=1:"}


def ask(tiny_wan, *paths, **more):
    given = {"prompt": "a red circle", "model": str(tiny_wan), "seed": 1, "steps": 2, "lora": [str(p) for p in paths]}
    return GenerateSettings.from_mappings((COMMAND_LINE, given | more))


def remarks(request):
    return [line for line in request.notes if "was trained through" in line]


def test_auto_takes_method_arguments_and_schedule_from_the_file(tiny_wan, lora):
    path = lora(**RADIAL)
    request = resolve(ask(tiny_wan, path, attention="auto"))
    settings = request.settings
    assert (settings.attention, settings.attention_args, settings.schedule) == tuple(RADIAL.values())
    assert remarks(request) == [] and any("l.safetensors: neighborhood" in line for line in request.notes)
    assert resolve(ask(tiny_wan, path, attention="auto", schedule="steps=1:,layers=1:")).settings.schedule == (
        "steps=1:,layers=1:"
    )


def test_the_record_repeats_what_auto_found_byte_for_byte(tiny_wan, lora):
    path = lora(**RADIAL)
    first = run(ask(tiny_wan, path, attention="auto"))
    assert first.report["ran"] > 0 and first.record["settings"]["attention"] == "neighborhood"
    stored = json.loads(json.dumps(first.record["settings"]))
    again = run(GenerateSettings.from_mappings(stored=("l.mp4", stored)))
    assert np.array_equal(first.frames, again.frames) and again.record == first.record


@pytest.mark.parametrize(
    ("trained", "asked", "told"),
    [
        (RADIAL, {}, "trained through neighborhood.*this run goes through the model's own"),
        ({}, RADIAL, "trained through the model's own attention, this run goes through neighborhood"),
        (RADIAL, RADIAL | {"attention_args": {"size": "allx1x2"}}, "size=allx1x1.*size=allx1x2"),
        (RADIAL, RADIAL | {"schedule": "layers=0:"}, "layers=1:.*layers=0:"),
        (RADIAL, {"attention": "radial"}, "trained through neighborhood.*through radial"),
        (RADIAL, RADIAL, None),
        (RADIAL, RADIAL | {"schedule": "steps=1:,layers=1:"}, None),
        ({}, {}, None),
        ({"attention_known": False}, RADIAL, None),
    ],
)
def test_other_attention_than_in_training_is_told(tiny_wan, lora, trained, asked, told):
    import re

    found = remarks(resolve(ask(tiny_wan, lora(**trained), **asked)))
    assert (found == []) if told is None else (len(found) == 1 and re.search(told, found[0])), found


def test_the_methods_own_weights_are_found_beside_the_file(tiny_wan, lora, tmp_path):
    from genkit import Agent, patch
    from genkit.pipelines.load import load

    small = {"cell": (1, 2, 2), "lattice": (1, 1, 2), "lines": (2, 1, 2)}
    texts = {"form": "trained"} | {name: "x".join(map(str, value)) for name, value in small.items()}
    pipeline = load(tiny_wan)
    with patch(pipeline, Agent(form="trained", **small)) as handle:
        (tmp_path / "loras").mkdir()
        handle.weights.save(tmp_path / "loras" / "attention.safetensors")
    trained = {
        "attention": "agent",
        "attention_args": texts,
        "attention_weights": "attention.safetensors",
    }
    path = lora(**trained)
    settings = resolve(ask(tiny_wan, path, attention="auto")).settings
    assert settings.attention_args["weights"] == str(tmp_path / "loras" / "attention.safetensors")
    assert remarks(resolve(ask(tiny_wan, path, attention="auto"))) == []
    with pytest.raises(GenkitError, match="which is not beside it"):
        resolve(ask(tiny_wan, lora(folder="elsewhere", **trained), attention="auto"))


def test_names_of_files_in_facts_lead_to_the_files_folder_only(tiny_wan, lora):
    path = lora(attention="agent", attention_weights="../../../etc/passwd")
    with pytest.raises(GenkitError, match="'passwd', which is not beside"):
        resolve(ask(tiny_wan, path, attention="auto"))
    with pytest.raises(GenkitError, match="recipe file.*give it with --recipe"):
        resolve(ask(tiny_wan, lora(recipe="/home/someone/mine.yaml"), attention="auto"))


def test_auto_without_an_answer_is_refused(tiny_wan, lora):
    with pytest.raises(GenkitError, match="add --lora FILE"):
        resolve(ask(tiny_wan, attention="auto"))
    with pytest.raises(GenkitError, match="does not tell what attention"):
        resolve(ask(tiny_wan, lora(attention_known=False), attention="auto"))
    with pytest.raises(GenkitError, match="--attention auto takes one"):
        resolve(ask(tiny_wan, lora("a", **RADIAL), lora("b", attention="radial"), attention="auto"))
    with pytest.raises(GenkitError, match="model's own attention, which has no settings"):
        resolve(ask(tiny_wan, lora(), attention="auto", schedule="layers=1:"))
    with pytest.raises(GenkitError, match="attention method.*'no_such_method'"):
        resolve(ask(tiny_wan, lora(attention="no_such_method"), attention="auto"))


def test_auto_takes_the_models_own_attention_too(tiny_wan, lora):
    request = resolve(ask(tiny_wan, lora(), attention="auto"))
    assert request.settings.attention is None and request.attention is None
    assert any("the model's own" in line for line in request.notes)


def test_facts_of_the_wrong_types_are_one_line(tiny_wan, lora):
    from safetensors.torch import load_file, save_file

    path = lora()
    for facts in ("[]", '{"attention": 5}', '{"attention_args": []}', "{"):
        save_file(load_file(path), path, metadata={"genkit": facts})
        with pytest.raises(GenkitError, match="l.safetensors, genkit") as caught:
            resolve(ask(tiny_wan, path))
        assert len(str(caught.value).splitlines()) == 1


def test_weights_of_two_loras_are_not_chosen_between(tiny_wan, lora):
    """One would be dropped: which one is to be named."""
    told = {"attention": "agent", "attention_args": {"form": "trained"}, "attention_weights": "attention.safetensors"}
    paths = [lora(folder=name, **told) for name in ("first", "second")]
    with pytest.raises(UsageError, match=r"first.*second.*bring weights of agent each.*--attention-args weights=FILE"):
        resolve(ask(tiny_wan, *paths, attention="auto"))
