"""Every family with a record trains: encoded media and captions become a loss whose gradient reaches the adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import nn

from genkit.errors import UsageError
from genkit.families.lookup import diffusers_class, facts_of
from genkit.families.training.base import SPREAD, VIDEO, Media
from genkit.families.training.lookup import trainable, training_of
from genkit.training.data.batch import Batch
from genkit.training.lora.adapter import Adapter, AdapterConfig
from genkit.training.lora.task import LoraTask, LossOptions

#: Pipeline, frames, height and width of a sample, text slots; the shipped models' families are trained elsewhere.
CASES: dict[str, tuple[Callable[[], Any], int, int, int, int]] = {
    "xl": (tiny_pipelines.stable_diffusion_xl, 1, 16, 16, 77),
    "sd3": (tiny_pipelines.stable_diffusion_3, 1, 16, 24, 16),
    "kontext": (tiny_pipelines.flux_kontext, 1, 16, 24, 16),
    "qwen": (tiny_pipelines.qwen_image, 1, 16, 24, 16),
    "wan 5B": (lambda: tiny_pipelines.wan(expand_timesteps=True), 5, 32, 48, 16),
    "wan from pictures": (lambda: tiny_pipelines.wan_image("2.1"), 5, 32, 48, 512),
    "wan 5B from pictures": (lambda: tiny_pipelines.wan_image("5B"), 5, 32, 48, 16),
    "hunyuan": (tiny_pipelines.hunyuan_video, 5, 32, 48, 16),
    "motif": (tiny_pipelines.motif_video, 5, 32, 48, 16),
    "motif from pictures": (lambda: tiny_pipelines.motif_video(pictures=True), 5, 32, 48, 16),
    "cogvideox": (lambda: tiny_pipelines.cogvideox("cogvideox"), 9, 64, 80, 5),
    "cogvideox from pictures": (tiny_pipelines.cogvideox_image, 9, 32, 48, 5),
    "ltx": (tiny_pipelines.ltx, 9, 64, 96, 16),
    "ltx from pictures": (lambda: tiny_pipelines.ltx(pictures=True), 9, 64, 96, 16),
}
CAPTIONS = ("a red circle", "blue")


@pytest.fixture(autouse=True)
def ftfy(monkeypatch):
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def task_and_batch(name: str) -> tuple[LoraTask, Batch]:
    """A task with a fresh adapter of rank 4, and two encoded samples."""
    build, frames, height, width, slots = CASES[name]
    pipeline = build()
    if name == "hunyuan":
        pipeline.encode_prompt = _brief(pipeline.encode_prompt)
    training = training_of(pipeline)
    samples = [_sample(pipeline, training, seed, frames, height, width) for seed in range(2)]
    texts = training.text(pipeline, CAPTIONS, slots)
    media = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if SPREAD not in key}
    latents = {stream: media.pop(stream) for stream in training.streams}
    text = {key: torch.stack([row[key] for row in texts]) for key in texts[0]}
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    model = getattr(pipeline, "transformer", None) or pipeline.unet
    targets = facts_of(diffusers_class(pipeline)).lora_targets
    fps = 24.0 if VIDEO in latents else None
    task = LoraTask(pipeline, training, Adapter(model, AdapterConfig(rank=4), targets))
    return task, Batch(latents, media, text, fps=fps)


def _brief(encode: Callable[..., Any]) -> Callable[..., Any]:
    """HunyuanVideo's own template is longer than the words that the tiny tokenizer knows."""
    template = {"template": "the image is {} now", "crop_start": 2}
    return lambda *args, **more: encode(*args, **more, prompt_template=template)


def _sample(pipeline: Any, training: Any, seed: int, frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels, control = (torch.rand(3, count, height, width, generator=generator) * 2 - 1 for count in (frames, 1))
    given = {"control": control} if "control" in training.needs else {}
    fps = 24.0 if frames > 1 else None
    return training.encode(pipeline, Media(pixels, fps, given=given), None)


@pytest.mark.parametrize("name", CASES)
def test_the_first_gradient_reaches_every_upper_half_and_no_lower_one(name):
    task, batch = task_and_batch(name)
    loss, _ = task(batch, 0)
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    reached = {
        path: value.grad is not None and bool(value.grad.any()) for path, value in task.adapter.parameters.items()
    }
    lower, upper = ({path: here for path, here in reached.items() if half in path} for half in ("lora_A", "lora_B"))
    assert len(lower) == len(upper) > 0 and len(lower) + len(upper) == len(reached) and not any(lower.values())
    # What the last block says to the text goes nowhere.
    assert sum(upper.values()) >= 0.75 * len(upper), upper


@pytest.mark.parametrize("name", ["kontext", "wan 5B from pictures", "cogvideox"])
def test_it_learns_one_step_by_heart(name):
    task, batch = task_and_batch(name)
    optimizer = torch.optim.AdamW(task.adapter.parameters.values(), lr=3e-2)
    losses = []
    for _ in range(40):
        loss, _ = task(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.85 * losses[0], (losses[0], losses[-1])


def test_every_class_with_a_record_is_trained_here_or_is_a_shipped_models():
    here = {type(build()).__name__ for build, *_ in CASES.values()}
    shipped = {"WanPipeline", "StableDiffusionPipeline", "FluxPipeline", "LTX2Pipeline", "LTX2ImageToVideoPipeline"}
    assert here | shipped == set(trainable())


def test_told_pictures_are_emptied_or_noised_anew_in_every_step(monkeypatch):
    task, batch = task_and_batch("cogvideox from pictures")
    told = batch.media["condition"]
    told[:, :, 0] += 1.0  # the tiny autoencoder may make a zero of it

    def with_options(**options):
        task.options = replace(task.options, **options)
        return task

    def changed(number=0, first=0):
        return task._conditions(batch, number, first).media["condition"]

    with_options(condition_dropout=1.0)
    assert not changed().any() and told.any()
    seen = []
    monkeypatch.setattr(task.network, "forward", lambda **given: seen.append(given["hidden_states"]) or _stop())
    with pytest.raises(StopIteration):
        task(batch, 0)
    assert seen[0].shape[2] == 2 * told.shape[1] and not seen[0][:, :, told.shape[1] :].any()
    with_options(condition_dropout=0.0, condition_noise=0.05)
    noised = changed() - told
    assert 0.01 < float(noised[:, :, 0].std()) < 0.3 and not noised[:, :, 1:].any()
    assert torch.equal(changed(), changed()) and not torch.equal(changed(0), changed(1))
    assert torch.equal(changed(0, 2)[0], task._conditions(_turned(batch), 0, 1).media["condition"][1])
    with_options(condition_dropout=None, condition_noise=None)
    empty = sum(not row.any() for number in range(300) for row in changed(number))
    assert 0.02 < empty / 600 < 0.09  # 0.05 as the family was trained


def test_models_that_are_told_no_picture_refuse_its_noise():
    task, _ = task_and_batch("ltx")
    with pytest.raises(UsageError, match="this model is told no picture that takes them"):
        LoraTask(task.pipeline, task.training_record, task.adapter, LossOptions(condition_noise=0.1))


def _stop():
    raise StopIteration


def _turned(batch):
    """The same samples in another order."""
    return replace(batch, media={name: value.flip(0) for name, value in batch.media.items()})
