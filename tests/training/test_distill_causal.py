"""A student of a stream: what it learns is what the stream runs, on the teacher's own clips."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from distill_helpers import WINDOW, same_weights, tiny_settings

from genkit.errors import UnsupportedError, UsageError
from genkit.lora.facts import read_facts
from genkit.lora.files import NAMED
from genkit.models.check import check_safetensors
from genkit.streaming import Stream
from genkit.training.distill.plan import Plan
from genkit.training.distill.run import Run, distill


def settings(model, prompts, output, **more):
    given = {
        "kind": "causal",
        "num_frames": 13,
        "steps": 2,
        "substeps": 2,
        "max_train_steps": 3,
        "stream_args": WINDOW,
        **more,
    }
    return tiny_settings(model, prompts, output, **given)


def opened(*args, **more):
    return Run.open(Plan.of(settings(*args, **more)), print)


def trained(run):
    """An adapter that does something, the same for equal seeds."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in run.built.adapter.parameters.values():
            value.copy_(0.2 * torch.randn(value.shape, generator=draw))


def test_a_chunk_in_training_is_a_chunk_of_the_stream(tiny_wan, prompts, tmp_path):
    """The same latents, clean earlier chunks and level give the answer that the stream's first step gives, also after
    frames have left the window."""
    run = opened(tiny_wan, prompts, tmp_path, train_batch_size=1)
    trained(run)
    task, asked = run.task, run.task.teaching.prompts.at(3, 0, 0)
    text = task._asked(0, 0)
    stream = Stream(
        run.pipeline, asked, context="cache", renoise=True, seed=8, height=32, width=32, steps=2, guidance_scale=1.0,
        max_sequence_length=task.teaching.texts._slots, **WINDOW,
    )  # fmt: skip
    stream.sampler.scheduler.config.shift = run.sampling.flow_shift
    seen, ask = [], stream._call

    def kept(branch, latents, levels, state, step):
        found = ask(branch, latents, levels, state, step)
        seen.append((latents.clone(), float(levels[0, 0]) / 1000, found.clone()))
        return found

    stream._call = kept
    list(islice(stream, 4))
    assert len(seen) == 12  # two steps and a clean pass for each of four chunks

    def answer(noisy, level):
        return task._answer(task.network, noisy, level, text, 1.0)

    with task.rollout.video(seen[0][0]) as video:
        for chunk in range(4):
            video.begin(task.rollout.tokens(seen[0][0]))
            for latents, level, wanted in seen[3 * chunk : 3 * chunk + 2]:
                found = video.ask(answer, latents, level)  # with a graph: the cache is copied
                assert found.requires_grad
                torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-5)
            video.keep(answer, seen[3 * chunk + 2][0])
    assert not torch.allclose(seen[0][2], seen[3][2], atol=1e-3)


def test_one_chunk_of_the_whole_clip_is_plain_regression(tiny_wan, prompts, tmp_path):
    run = opened(
        tiny_wan, prompts, tmp_path, stream_args={"chunk": 4, "sink": 1, "recent": 0, "trained": 5}, num_frames=13
    )
    trained(run)
    task = run.task
    assert task.rollout.chunked.chunks == 1
    loss, _ = task(5)
    loss.backward()
    found = {name: value.grad.clone() for name, value in task.named_parameters() if value.grad is not None}
    text, path = task._asked(2, 0), task._path(2, 0, task._asked(2, 0))
    at = task._at(5, 0, 0)
    task.zero_grad(set_to_none=True)
    errors = []
    for row, step in enumerate(at):
        level = task.grid.levels[step]
        noisy = path[step][row : row + 1]
        answer = task._answer(task.network, noisy, level, {name: v[row : row + 1] for name, v in text.items()}, 1.0)
        errors.append((noisy - level * answer - path[-1][row : row + 1]).square().mean())
    wanted = torch.stack(errors).mean()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-5)
    grads = {name: value.grad for name, value in task.named_parameters() if value.grad is not None}
    assert grads.keys() == found.keys() and found
    for name, value in grads.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-3)


def test_the_path_is_the_teachers_and_the_student_is_not_in_it(tiny_wan, prompts, tmp_path):
    one, other = opened(tiny_wan, prompts, tmp_path), opened(tiny_wan, prompts, tmp_path)
    trained(other)
    paths = [run.task._path(0, 0, run.task._asked(0, 0)) for run in (one, other)]
    assert len(paths[0]) == 3 and all(torch.equal(a, b) for a, b in zip(*paths, strict=True))
    one.task(0), other.task(0)
    text = one.task._asked(0, 0)
    with torch.no_grad(), one.task._off() as teacher, other.task._off() as same:
        pair = [task._answer(net, paths[0][0], 0.5, text, 1.0)
                for task, net in ((one.task, teacher), (other.task, same))]  # fmt: skip
    assert torch.equal(*pair), "the patch is gone when the teacher is asked"


def test_clean_chunks_come_before_and_give_no_gradient(tiny_wan, prompts, tmp_path):
    """The loss of the first chunk does not depend on the second, the second sees the clean first."""
    run = opened(tiny_wan, prompts, tmp_path, num_frames=13)
    trained(run)
    task, text = run.task, run.task._asked(0, 0)
    path = task._path(0, 0, text)
    _, figures = task(0)
    changed = [level.clone() for level in path]
    changed[-1][:, :, :2] += 1.0  # the clean end of the first chunk alone
    task._walked = (0, changed)
    _, moved = task(0)
    assert moved["loss chunk 2"] != figures["loss chunk 2"]
    changed = [level.clone() for level in path]
    for level in changed:
        level[:, :, 2:] += 1.0
    task._walked = (0, changed)
    _, moved = task(0)
    assert moved["loss chunk 1"] == figures["loss chunk 1"] and moved["loss chunk 2"] != figures["loss chunk 2"]


def test_a_run_that_was_stopped_in_a_round_ends_as_an_unbroken_one(tiny_wan, prompts, tmp_path):
    once = distill(settings(tiny_wan, prompts, tmp_path / "once"))
    twice = tmp_path / "twice"
    distill(settings(tiny_wan, prompts, twice, max_train_steps=1))
    (twice / NAMED).unlink()
    distill(settings(tiny_wan, prompts, twice, resume_from_checkpoint="latest"))
    same_weights(once, twice / NAMED)
    facts = read_facts(check_safetensors(once)["__metadata__"], "the file")
    assert facts.sampling.stream == {"context": "cache", **WINDOW, "keep": 1.0, "renoise": True}


def test_the_command_tells_the_stream_and_generate_takes_it_from_the_file(tiny_wan, prompts, tmp_path, capsys):
    from genkit.cli.main import main

    flags = [
        "train", "distill", "--kind", "causal", "--model", str(tiny_wan), "--prompts", str(prompts), "--height", "32",
        "--width", "32", "--num-frames", "13", "--steps", "2", "--rank", "2", "--max-train-steps", "1",
        "--stream-args", "chunk=2,sink=1,recent=2,trained=5,renoise=false", "--json",
    ]  # fmt: skip
    assert main([*flags, "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chunks of a clip"] == 2 and "chunk=2" in found["stream"] and found["memory"]["peak"] > 0
    assert found["steps of the teacher"] == 6
    assert main([*flags, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    run = ["generate", "a red circle", "--model", str(tiny_wan), "--stream", "--lora", str(tmp_path / "run"),
           "--num-frames", "9", "--height", "32", "--width", "32", "--seed", "1"]  # fmt: skip
    assert main([*run, "-o", str(tmp_path / "clip.mp4")]) == 0
    told = capsys.readouterr()
    assert "chunk=2, context=cache, keep=1.0, recent=2, renoise=False, sink=1, trained=5" in told.err + told.out
    assert main([*run, "--stream-args", "recent=1", "-o", str(tmp_path / "other.mp4")]) == 0
    told = capsys.readouterr()
    assert "--stream-args recent: not what" in told.err + told.out
    run.remove("--stream")
    assert main([*run, "-o", str(tmp_path / "plain.mp4")]) == 0
    assert "add --stream" in "".join(capsys.readouterr())


def test_a_clip_is_whole_chunks_of_the_longest_that_was_trained(tiny_wan, prompts, tmp_path):
    plan = Plan.of(settings(tiny_wan, prompts, tmp_path, num_frames=None, stream_args={"chunk": 2, "trained": 5}))
    assert plan.chunked.frames == 4 and plan.size[0] == 13


def test_what_is_not_streamed_over_a_cache_is_refused(prompts, tmp_path):
    with pytest.raises(UnsupportedError, match="cannot be streamed; pipelines that can: "):
        Plan.of(settings("toy-dit", prompts, tmp_path, num_frames=None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"own_path": 0.2}, "belongs to steps"),
        ({"renoise": 0.5}, "belongs to tdm"),
        ({"kind": "steps"}, "belongs to causal"),
        ({"kind": "steps", "stream_args": {}, "fake_updates": 2}, "belongs to tdm"),
        ({"attention": "neighborhood", "attention_args": {"size": "1x1x1"}}, "same layers"),
        ({"gradient_checkpointing": True}, "--gradient-checkpointing"),
        ({"num_frames": 17}, "13 or 21: whole chunks of 2"),
        ({"num_frames": 14}, "--num-frames: got 14|num_frames|frames"),
        ({"stream_args": {"chunk": 9, "trained": 5}}, "longer than the 5"),
        ({"stream_args": {"chunk": 4, "sink": 2, "recent": 2, "trained": 5}}, "longer than the 5"),
        ({"stream_args": {"chunk": 2, "sink": 0, "recent": 0}}, "forget everything"),
        ({"stream_args": {"chunk": 0}}, "chunk of a stream"),
        ({"stream_args": {"chunk": "two"}}, "a whole number"),
        ({"stream_args": {"keep": 0.0}}, "keep of a stream"),
        ({"stream_args": {"context": "frames"}}, "--stream-args"),
        ({"stream_args": {"carried": "pixels"}}, "--stream-args"),
        ({"stream_args": {"renoise": "perhaps"}}, "true or false"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tiny_wan, prompts, tmp_path, change, said):
    with pytest.raises((UsageError, UnsupportedError), match=said) as caught:
        Plan.of(settings(tiny_wan, prompts, tmp_path, **change))
    assert "\n" not in str(caught.value)


def test_a_video_leaves_the_model_as_it_was(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path)
    text, noisy = run.task._asked(0, 0), run.task._noise(1, 0, 0)
    with torch.no_grad():
        plain = run.task._answer(run.task.network, noisy, 0.5, text, 1.0)
        run.task(0)
        assert torch.equal(run.task._answer(run.task.network, noisy, 0.5, text, 1.0), plain)


def test_gradients_reach_the_lora_and_nothing_else(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path)
    trained(run)
    task = run.task
    task(0)[0].backward()
    own = {id(value) for value in run.built.adapter.parameters.values()}
    moved = {id(value) for module in (task, task.network) for value in module.parameters() if value.grad is not None}
    assert moved and moved <= own
    assert any(value.grad.abs().sum() > 0 for value in run.built.adapter.parameters.values() if value.grad is not None)


def test_a_teacher_with_a_lora_walks_other_paths(tiny_wan, prompts, tmp_path):
    distill(settings(tiny_wan, prompts, tmp_path / "lora", max_train_steps=1, learning_rate=0.1))
    plain = opened(tiny_wan, prompts, tmp_path / "one", guidance_scale=1.0)
    other = opened(tiny_wan, prompts, tmp_path / "two", guidance_scale=1.0, teacher_lora=str(tmp_path / "lora" / NAMED))
    paths = [run.task._path(0, 0, run.task._asked(0, 0)) for run in (plain, other)]
    assert torch.equal(paths[0][0], paths[1][0]) and not torch.equal(paths[0][-1], paths[1][-1])
    assert torch.isfinite(other.task(0)[0])
