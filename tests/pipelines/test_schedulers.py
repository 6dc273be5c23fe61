"""--scheduler: another sampler of Diffusers, fitted to the model's noise, or refused before weights are read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
import torch

import genkit
from genkit.editing.shared import EditModel
from genkit.errors import UsageError
from genkit.pipelines.model import Model
from genkit.pipelines.outputs import to_frames
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A model whose pipeline makes its own list of noise levels."""
    folder = tmp_path_factory.mktemp("kontext")
    tiny_pipelines.flux_kontext().save_pretrained(folder)
    return folder


def ask(folder, scheduler, **changes):
    return GenerateSettings(prompt="a red circle", model=str(folder), seed=1, steps=4, scheduler=scheduler, **changes)


SAME = [
    ("tiny_sd", "HeunDiscrete", "HeunDiscreteScheduler", {}),
    ("tiny_sd", "dpmsolvermultistep:algorithm_type=sde-dpmsolver++,solver_order=1", "DPMSolverMultistepScheduler",
     {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("tiny_wan", "FlowMatchEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("tiny_wan", "DPMSolverMultistep", "DPMSolverMultistepScheduler",
     {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize("model, text, name, changes", SAME)
def test_a_sampler_by_name_is_the_stock_scheduler(request, model, text, name, changes):
    import diffusers

    folder = request.getfixturevalue(model)
    session = Session(resolve(ask(folder, text)))
    made = session.run()
    assert made.record["settings"]["scheduler"] == text
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    arguments = session.arguments(made.settings, "a red circle", made.settings.negative_prompt, None)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stock = pipeline(**arguments, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(to_frames(stock, session.request.model.kind), made.frames)
    plain = Session(resolve(ask(folder, None))).run()
    assert not np.array_equal(plain.frames, made.frames) and "scheduler" not in plain.record["settings"]


def test_a_shift_goes_with_the_sampler(tiny_wan):
    session = Session(resolve(ask(tiny_wan, "FlowMatchEulerDiscrete", flow_shift=7.0)))
    session.load()
    assert session.pipeline.scheduler.config.shift == 7.0


WRONG = [
    ("tiny_sd", "Eular", "did you mean 'EulerDiscrete'|--scheduler: got 'Eular'"),
    ("tiny_sd", "FlowMatchEulerDiscrete", "is for models trained on flows"),
    ("tiny_wan", "DDIM", "is for models trained on a table of betas"),
    ("tiny_sd", "DDIM:speed=3", "--scheduler DDIMScheduler: got 'speed', allowed: num_train_timesteps"),
    ("tiny_sd", "DDIM:clip_sample=perhaps", "clip_sample: got 'perhaps', allowed: true or false"),
    ("tiny_sd", "EulerDiscrete:timestep_spacing=wide", "--scheduler EulerDiscreteScheduler: wide is not supported"),
    ("tiny_sd", "DDIM:num_train_timesteps=2", "--scheduler DDIMScheduler"),
    ("tiny_sd", "EulerDiscrete:num_train_timesteps=-5", "--scheduler EulerDiscreteScheduler: number of steps must be"),
    ("kontext", "SASolver", "hands its scheduler sigmas, which SASolverScheduler does not take"),
]


@pytest.mark.parametrize("model, text, told", WRONG)
def test_a_sampler_that_does_not_fit_is_refused_before_weights(request, model, text, told, tmp_path):
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    given = {"image": (str(tmp_path / "a.png"),)} if model == "kontext" else {}
    with pytest.raises(UsageError, match=told):
        resolve(ask(request.getfixturevalue(model), text, **given))


def test_few_steps_and_a_sampler_exclude_each_other(tiny_wan):
    with pytest.raises(UsageError, match="--scheduler and --fast"):
        ask(tiny_wan, "FlowMatchEulerDiscrete", fast=True)


@pytest.mark.parametrize(("model", "flow"), [("tiny_sd", False), ("tiny_wan", True), ("tiny_flux", True)])
def test_whether_a_model_is_trained_on_flows_is_the_same_before_and_after_its_weights_are_read(request, model, flow):
    folder = request.getfixturevalue(model)
    assert Model.of(folder, model).flow is EditModel.of(genkit.load(folder)).flow is flow


def test_a_family_of_flow_models_needs_no_scheduler_that_says_so(tiny_wan, tmp_path):
    """Samplers went by the scheduler's file alone, and edits by the family: one said betas, the other flows."""
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000}))
    assert Model.of(folder, "wan").flow
    with pytest.raises(UsageError, match="for models trained on a table of betas, and .* is trained on flows"):
        resolve(ask(folder, "HeunDiscrete"))
