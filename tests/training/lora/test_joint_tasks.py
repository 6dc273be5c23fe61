"""Tasks of models of video and sound: what is given goes in clean and counts nothing, shares hold, draws repeat."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import tiny_av
import torch

import genkit
from genkit.attention.cross_modal_context import ContextRoute
from genkit.attention.cross_modal_context.route import TASKS
from genkit.errors import UsageError
from genkit.families.lookup import diffusers_class, facts_of
from genkit.families.training.lookup import trainable, trained_by_tasks, training_of
from genkit.training.data.batch import Batch
from genkit.training.lora.adapter import Adapter, AdapterConfig
from genkit.training.lora.joint import (
    JOINT_TASKS,
    JointDraw,
    check_clips,
    check_joint,
    joint_draw,
    task_shares,
)
from genkit.training.lora.task import LoraTask

FRAMES, SIDE, TOKENS = 3, 2, 7
BOTH = ("t2av", "i2av", "av2av", "a2v", "v2a")


@pytest.fixture(scope="module")
def pipeline():
    found = tiny_av.build_tiny_av()
    for part in (found.transformer, found.connectors):
        part.requires_grad_(False).eval()
    return found


def batch_of(pipeline: Any, count: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(count, 16, 48, generator=draw)
    with torch.no_grad():
        video, audio, mask = pipeline.connectors(states, torch.ones(count, 16, dtype=torch.long), padding_side="left")
    latents = {
        "video": torch.randn(count, 4, FRAMES, SIDE, SIDE, generator=draw),
        "audio": torch.randn(count, 2, TOKENS, 2, generator=draw),
    }
    return Batch(latents, {}, {"video": video, "audio": audio, "mask": mask}, fps=25.0)


def task_of(pipeline: Any, shares: dict[str, float] | None, handle: Any = None, **more: Any) -> LoraTask:
    """A task with an adapter that changes the answers, on a model free of earlier ones."""
    if getattr(pipeline.transformer, "peft_config", None):
        pipeline.transformer.unload_lora()
    training = training_of(pipeline)
    adapter = Adapter(pipeline.transformer, AdapterConfig(rank=2), facts_of("LTX2Pipeline").lora_targets)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in adapter.parameters.values():
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
    tasks = None if shares is None else joint_draw(task_shares(shares), training, {}, handle)
    return LoraTask(pipeline, training, adapter, tasks=tasks, **more)


def levels_and_draws(count: int) -> tuple[torch.Tensor, list[torch.Generator]]:
    return torch.linspace(0.3, 0.9, count), [torch.Generator().manual_seed(10 + index) for index in range(count)]


def errors(task: LoraTask, batch: Batch, names: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], Any]:
    level, draws = levels_and_draws(len(names))
    own = [torch.Generator().manual_seed(index) for index in range(len(names))]
    given = task.tasks.given(names, batch.latents, task.pipeline, batch.fps, own)
    return task.errors(batch, level, draws, given), given


def seen_by(task: LoraTask, monkeypatch) -> list[dict[str, Any]]:
    """Keyword arguments of the denoiser's calls."""
    calls, forward = [], task.network.forward
    monkeypatch.setattr(task.network, "forward", lambda **given: calls.append(given) or forward(**given))
    return calls


def test_names_and_weights_are_refused_with_what_is_allowed():
    assert task_shares({"t2av": "3", "a2v": 1, "v2a": 0}) == {"t2av": 0.75, "a2v": 0.25}
    for told, text in (
        ({"x2y": 1}, "task of --tasks: got 'x2y', allowed: t2av (text to video and sound), i2av (first frame"),
        ({"a2v": -1}, "weight of --tasks a2v: got -1, allowed: a number from 0 to 1e+06"),
        ({"a2v": float("nan")}, "weight of --tasks a2v: got nan"),
        ({"a2v": True}, "weight of --tasks a2v: got True"),
        ({"a2v": "much"}, "--tasks a2v: got 'much'"),
        ({"a2v": 0, "v2a": 0}, "a weight above 0 for one task at least: t2av=0.6,a2v=0.2,v2a=0.2"),
        ({}, "a weight above 0 for one task at least"),
    ):
        with pytest.raises(UsageError) as caught:
            task_shares(told)
        assert text in str(caught.value)


def test_models_of_one_stream_are_refused(tiny_wan):
    wan = genkit.load(str(tiny_wan), "float32", "cpu")
    with pytest.raises(UsageError, match="WanPipeline is not trained by tasks; allowed: models of video and sound"):
        check_joint({"t2av": 1}, training_of(wan), "WanPipeline")


def test_the_named_classes_are_those_whose_records_know_tasks(pipeline):
    from diffusers import LTX2ImageToVideoPipeline

    assert diffusers_class(pipeline) in trained_by_tasks()
    assert set(trained_by_tasks()) <= set(trainable())
    assert training_of(pipeline).joint is not None
    pictures = LTX2ImageToVideoPipeline(**pipeline.components)
    assert diffusers_class(pictures) not in trained_by_tasks()
    assert training_of(pictures).joint is None  # every sample begins with a picture there


@pytest.mark.parametrize(
    ("shares", "silent", "single", "text"),
    [
        ({"t2v": 1, "a2v": 1}, ["a.mp4", "b.mp4"], [], "--tasks a2v need sound, which these lack: a.mp4, b.mp4; "),
        (
            {"i2av": 1, "av2av": 1},
            [],
            list("abcde"),
            "--tasks i2av, av2av need more than one frame, which these lack: a, b, c",
        ),
        ({"t2v": 1, "i2v": 1}, ["a.mp4"], [], None),
        ({"t2av": 1, "v2a": 1}, [], ["a.png"], None),
    ],
)
def test_clips_that_a_task_cannot_use_are_named(shares, silent, single, text):
    if text is None:
        return check_clips(shares, silent, single)
    with pytest.raises(UsageError) as caught:
        check_clips(shares, silent, single)
    assert text in str(caught.value)


def test_tasks_keep_their_shares_and_follow_from_seed_number_and_place(pipeline):
    shares = task_shares({"t2av": 4, "i2av": 2, "t2v": 1, "t2a": 0.5, "a2v": 1.5, "v2a": 1})
    task = task_of(pipeline, shares, seed=3)

    def drawn(number: int, place: int = 0) -> tuple[str, ...]:
        return task.tasks.draw(
            task.generator(4, number, 2**32 - 1), [task.generator(4, number, place + index) for index in range(2)]
        )

    found = [drawn(number) for number in range(6000)]
    counted = Counter(name for names in found for name in names)
    for name, share in shares.items():
        assert abs(counted[name] / 12000 - share) < 5 * (share * (1 - share) / 6000) ** 0.5, name
    # a call keeps the streams of all its samples apart, or of none
    assert all(len({JOINT_TASKS[name].apart for name in names}) == 1 for names in found)
    assert [drawn(number) for number in range(20)] == found[:20]
    assert [drawn(number, 1)[0] for number in range(20)] == [names[1] for names in found[:20]]
    alone = JointDraw({"t2v": 0.1, "t2a": 0.2, "i2v": 0.7}, training_of(pipeline).joint)
    assert alone.draw(torch.Generator(), [torch.Generator()])[0] in alone.shares


@pytest.mark.parametrize("name", JOINT_TASKS)
def test_what_is_given_goes_in_clean_at_level_0(name, pipeline, monkeypatch):
    task, batch = task_of(pipeline, {name: 1}), batch_of(pipeline)
    calls = seen_by(task, monkeypatch)
    _, given = errors(task, batch, (name, name))
    (call,) = calls
    level, _ = levels_and_draws(2)
    spatial = SIDE * SIDE
    for stream, tokens, prefix in (
        ("video", pipeline._pack_latents(batch.latents["video"]), ""),
        ("audio", pipeline._pack_audio_latents(batch.latents["audio"]), "audio_"),
    ):
        clean = given.clean[stream].repeat_interleave(spatial if stream == "video" else 1, 1)
        sent = call[f"{prefix}hidden_states"]
        assert torch.equal(sent[clean], tokens[clean])
        assert not torch.isclose(sent[~clean], tokens[~clean]).all(-1).any()
        told = call[f"{prefix}timestep"]
        assert not told[clean].any() and torch.equal(told, torch.where(clean, 0.0, 1000 * level[:, None]))
        assert torch.equal(call[f"{prefix}sigma"], 1000 * level * (stream not in JOINT_TASKS[name].given))
    assert call["isolate_modalities"] == JOINT_TASKS[name].apart
    kept = {stream: value.sum(1).tolist() for stream, value in given.clean.items()}
    wanted = {
        "t2av": ([0, 0], [0, 0]), "i2av": ([1, 1], [0, 0]), "t2v": ([0, 0], [0, 0]), "i2v": ([1, 1], [0, 0]),
        "t2a": ([0, 0], [0, 0]), "a2v": ([0, 0], [TOKENS] * 2), "v2a": ([FRAMES] * 2, [0, 0]),
    }  # fmt: skip
    if name != "av2av":
        assert (kept["video"], kept["audio"]) == wanted[name]


def test_what_is_continued_is_of_random_length_with_its_own_sound(pipeline):
    task, batch = task_of(pipeline, {"av2av": 1}), batch_of(pipeline)
    seen = set()
    for seed in range(20):
        own = [torch.Generator().manual_seed(seed + 100 * row) for row in range(2)]
        given = task.tasks.given(("av2av",) * 2, batch.latents, pipeline, 25.0, own)
        for video, audio in zip(given.clean["video"], given.clean["audio"], strict=True):
            frames, tokens = int(video.sum()), int(audio.sum())
            assert video[:frames].all() and audio[:tokens].all() and 1 <= frames < FRAMES
            assert tokens == training_of(pipeline).joint.sound_of(pipeline, frames, 25.0, TOKENS)
            seen.add(frames)
    assert seen == {1, 2}
    one = dataclasses.replace(batch, latents={**batch.latents, "video": batch.latents["video"][:, :, :1]})
    for name in ("i2av", "i2v", "av2av"):
        with pytest.raises(UsageError, match="clips of two latent frames or more"):
            errors(task, one, (name, name))


@pytest.mark.parametrize("name", JOINT_TASKS)
def test_what_is_given_or_absent_has_no_loss_and_no_gradient(name, pipeline, monkeypatch):
    """With answers that do not depend on the inputs the gradient of the targets is that of the loss alone."""
    task, batch = task_of(pipeline, {name: 1}), batch_of(pipeline)
    shapes = (2, FRAMES * SIDE * SIDE, 4), (2, TOKENS, 4)
    answers = [torch.full(shape, 0.3, requires_grad=True) for shape in shapes]
    monkeypatch.setattr(task.network, "forward", lambda **given: tuple(answers))
    latents = {stream: value.clone().requires_grad_() for stream, value in batch.latents.items()}
    found, given = errors(task, dataclasses.replace(batch, latents=latents), (name, name))
    sum(error.sum() for error in found.values()).backward()
    for stream, answer in zip(("video", "audio"), answers, strict=True):
        counts = given.counts[stream][:, 0].flatten(2)[..., 0].bool()  # (B, L)
        assert bool(counts.any()) == (stream in JOINT_TASKS[name].made)
        assert torch.equal(counts, torch.full_like(counts, stream in JOINT_TASKS[name].made) & ~given.clean[stream])
        tokens = counts.repeat_interleave(SIDE * SIDE if stream == "video" else 1, 1)
        assert answer.grad[tokens].all() and not answer.grad[~tokens].any()
        wanted = latents[stream].grad.movedim(2, 1)  # (B, L, C, ...)
        assert wanted[counts].all() and not wanted[~counts].any()
        if stream not in JOINT_TASKS[name].made:
            assert not found[stream].any()
        else:
            level, draws = levels_and_draws(2)
            noise = {}
            for each in ("video", "audio"):
                noise[each] = torch.stack([torch.randn(batch.latents[each].shape[1:], generator=one) for one in draws])
            wrong = (0.3 - (noise[stream] - batch.latents[stream])).square().movedim(2, 1)
            own = [float(wrong[row][counts[row]].mean()) for row in range(2)]
            assert found[stream].tolist() == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(("name", "absent"), [("t2v", "audio"), ("i2v", "audio"), ("t2a", "video")])
def test_an_absent_stream_is_not_read_and_its_layers_learn_nothing(name, absent, pipeline):
    task, batch = task_of(pipeline, {name: 1}), batch_of(pipeline)
    found, _ = errors(task, batch, (name, name))
    made = JOINT_TASKS[name].made[0]
    louder = dataclasses.replace(batch, latents={**batch.latents, absent: 100 * batch.latents[absent]})
    assert torch.equal(errors(task, louder, (name, name))[0][made], found[made])
    assert not torch.equal(errors(task, louder, ("t2av",) * 2)[0][made], errors(task, batch, ("t2av",) * 2)[0][made])
    task.zero_grad()
    sum(error.sum() for error in found.values()).backward()
    reached = {
        path: value.grad is not None and bool(value.grad.any()) for path, value in task.adapter.parameters.items()
    }
    sound = {path: "audio_attn" in path for path in reached}
    between = {path: "_to_" in path.split("attn")[0] for path in reached}
    for path, here in reached.items():
        assert here == (not between[path] and sound[path] == (made == "audio")), path


@pytest.mark.parametrize(("name", "given"), [("a2v", "audio"), ("v2a", "video")])
def test_a_given_stream_is_read(name, given, pipeline):
    task, batch = task_of(pipeline, {name: 1}), batch_of(pipeline)
    made = JOINT_TASKS[name].made[0]
    other = dataclasses.replace(batch, latents={**batch.latents, given: batch.latents[given] + 1})
    one, two = (errors(task, each, (name, name))[0] for each in (batch, other))
    assert not torch.allclose(one[made], two[made]) and not one[given].any()


def test_a_mixed_batch_is_its_samples(pipeline):
    task, batch = task_of(pipeline, dict.fromkeys(BOTH, 1)), batch_of(pipeline, len(BOTH))
    level, draws = levels_and_draws(len(BOTH))
    seeds = range(len(BOTH))
    given = task.tasks.given(
        BOTH, batch.latents, pipeline, 25.0, [torch.Generator().manual_seed(seed) for seed in seeds]
    )
    whole = task.errors(batch, level, draws, given)
    for row, name in enumerate(BOTH):
        one = dataclasses.replace(
            batch,
            latents={key: value[row : row + 1] for key, value in batch.latents.items()},
            text={key: value[row : row + 1] for key, value in batch.text.items()},
        )
        own = task.tasks.given((name,), one.latents, pipeline, 25.0, [torch.Generator().manual_seed(row)])
        alone = task.errors(one, level[row : row + 1], [torch.Generator().manual_seed(10 + row)], own)
        for stream in whole:
            torch.testing.assert_close(whole[stream][row], alone[stream][0], rtol=2e-4, atol=1e-6)


def test_making_both_is_training_without_tasks(pipeline):
    batch = batch_of(pipeline)
    plain = task_of(pipeline, None)(batch, 5)
    told = task_of(pipeline, {"t2av": 1})(batch, 5)
    torch.testing.assert_close(told[0], plain[0], rtol=1e-4, atol=1e-6)
    assert told[1].keys() - plain[1].keys() == {"loss t2av"}
    assert told[1]["loss t2av"] == pytest.approx(told[1]["loss video"] + told[1]["loss audio"], rel=1e-5)


def test_a_step_follows_from_its_number(pipeline):
    """A resumed run repeats an unbroken one: a new task of the same seed gives the same losses and gradients."""
    shares, batch = dict.fromkeys(JOINT_TASKS, 1), batch_of(pipeline)
    found = []
    for _ in range(2):
        task = task_of(pipeline, shares, seed=4)
        steps = []
        for number in (0, 7, 3):
            task.zero_grad()
            loss, figures = task(batch, number)
            loss.backward()
            grads = [None if value.grad is None else value.grad.clone() for value in task.adapter.parameters.values()]
            steps.append((loss.detach(), figures, grads))
        found.append(steps)
    for (loss, figures, grads), (again, others, same) in zip(*found, strict=True):
        assert torch.equal(loss, again) and figures == others
        assert all((one is None and two is None) or torch.equal(one, two) for one, two in zip(grads, same, strict=True))
    assert found[0][0][1].keys() != found[0][1][1].keys() or not torch.equal(found[0][0][0], found[0][1][0])


def test_the_held_out_loss_is_that_of_all_tasks_by_their_shares(pipeline):
    batches = {"all": batch_of(pipeline)}
    single = {name: task_of(pipeline, {name: 1}).held_out(batches)["held-out loss"] for name in ("a2v", "t2av", "t2a")}
    mixed = task_of(pipeline, {"a2v": 2, "t2av": 1, "t2a": 1}).held_out(batches)["held-out loss"]
    assert mixed == pytest.approx(0.5 * single["a2v"] + 0.25 * single["t2av"] + 0.25 * single["t2a"], rel=1e-5)
    assert single["t2av"] == pytest.approx(task_of(pipeline, None).held_out(batches)["held-out loss"], rel=1e-4)


def test_layers_between_the_streams_are_told_the_levels_that_sampling_tells(pipeline, monkeypatch):
    batch = batch_of(pipeline)
    for call, wanted in (({}, False), ({"use_cross_timestep": True}, True)):
        task = task_of(pipeline, {"a2v": 1})
        task.tasks = joint_draw({"a2v": 1.0}, training_of(pipeline), call, None)
        calls = seen_by(task, monkeypatch)
        errors(task, batch, ("a2v", "a2v"))
        assert calls[0]["use_cross_timestep"] is wanted
        monkeypatch.undo()


@pytest.mark.parametrize("keep", ["audio", "video"])
def test_a_call_in_training_is_one_of_sampling_with_a_given_half(keep, pipeline, monkeypatch):
    """The same arguments as genkit.pipelines.tasks.audio_video.complete hands to the transformer, levels by token."""
    task, batch = task_of(pipeline, {"a2v": 1}), batch_of(pipeline, 1)
    calls = seen_by(task, monkeypatch)
    errors(task, batch, ("a2v" if keep == "audio" else "v2a",))
    (call,) = calls
    monkeypatch.undo()
    level = 1000 * levels_and_draws(1)[0]
    sampled = {
        f"{prefix}{what}": torch.zeros(1) if stream == keep else level
        for stream, prefix in (("video", ""), ("audio", "audio_"))
        for what in ("timestep", "sigma")
    }
    with torch.no_grad():
        mine, theirs = task.network(**call), task.network(**(call | sampled))
    made = 1 if keep == "video" else 0
    torch.testing.assert_close(mine[made], theirs[made], rtol=1e-4, atol=1e-5)


def test_context_tokens_are_routed_by_the_tasks(pipeline, monkeypatch):
    from genkit.patching import unpatch

    handle = genkit.patch(pipeline.transformer, genkit.CrossModalContext(tokens=2, partition="none"))
    try:
        task, batch = task_of(pipeline, dict.fromkeys(JOINT_TASKS, 1), handle), batch_of(pipeline, 4)
        with torch.no_grad():
            for name, value in handle.weights.named_parameters():
                if name.endswith("values"):
                    value.normal_(generator=torch.Generator().manual_seed(0))
        told, route = [], ContextRoute.of(handle.cache)
        set_route = route.set
        monkeypatch.setattr(task.tasks, "route", lambda names: told.append(list(names)) or set_route(names))
        calls = seen_by(task, monkeypatch)
        names = ("t2v", "a2v", "t2av", "t2a")  # apart and together in one call
        found, _ = errors(task, batch, names)
        assert told == [["t2v", "a2v", "t2av", "t2a"], ["t2av"]] and calls[0]["isolate_modalities"] is False
        louder = dataclasses.replace(batch, latents={**batch.latents, "audio": 5 * batch.latents["audio"]})
        video = errors(task, louder, names)[0]["video"]
        assert torch.equal(video[0], found["video"][0]) and not torch.equal(video[1], found["video"][1])
        assert all(task.route in TASKS for task in JOINT_TASKS.values())
    finally:
        task.network.unload_lora()
        unpatch(pipeline.transformer)


def test_training_free_windows_are_no_route(pipeline):
    handle = genkit.patch(pipeline.transformer, genkit.CrossModalContext())
    try:
        assert joint_draw({"a2v": 1.0}, training_of(pipeline), {}, handle).route is None
    finally:
        handle.remove()
    assert joint_draw({}, training_of(pipeline), {}, None) is None
