"""Self-forcing: the roll-out is the stream, gradients flow through the step where it ends, the last clip is matched."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from distill_helpers import WINDOW, same_weights, tiny_settings

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.lora.facts import read_facts
from genkit.lora.files import NAMED
from genkit.models.check import check_safetensors
from genkit.streaming import Stream
from genkit.training.distill.plan import Plan
from genkit.training.distill.run import Run, distill
from genkit.training.distill.tdm import student_loss


def settings(model, prompts, output, **more):
    given = {"kind": "self-forcing", "num_frames": 13, "steps": 3, "max_train_steps": 4, **more}
    given["stream_args"] = WINDOW | given.get("stream_args", {})
    return tiny_settings(model, prompts, output, **given)


def opened(*args, **more):
    return Run.open(Plan.of(settings(*args, **more)), print)


def trained(run, scale=0.2):
    """An adapter and a state that do something, the same for equal seeds."""
    draw = torch.Generator().manual_seed(5)
    states = [] if run.task.state is None else list(run.task.state.parameters())
    with torch.no_grad():
        for value in (*run.built.adapter.parameters.values(), *states):
            value.copy_(scale * torch.randn(value.shape, generator=draw))


def from_a_stream(run, count, **more):
    """What :class:`Stream` makes of a seed, and the noise that it draws, by chunk and step."""
    asked, taken = run.task.teaching.prompts.at(3, 0, 0), []
    stream = Stream(
        run.pipeline, asked, context="cache", seed=8, height=32, width=32, steps=3, guidance_scale=1.0,
        max_sequence_length=run.task.teaching.texts._slots, **WINDOW, **more,
    )  # fmt: skip
    import diffusers

    stream.sampler.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=run.sampling.flow_shift)
    decode = stream.decoder.decode
    stream.decoder.decode = lambda latents: (taken.append(latents.clone()), decode(latents))[1]
    list(islice(stream, count))
    draw, noise = torch.Generator().manual_seed(8), {}
    for chunk in range(count):
        for step in range(3 if more["renoise"] else 1):
            noise[chunk, step] = torch.randn(taken[0].shape, generator=draw)
    return taken, noise


@pytest.mark.parametrize("graph", [None, 0])
@pytest.mark.parametrize(
    "more",
    [{"renoise": True}, {"renoise": False}, {"renoise": True, "keep": 0.5}, {"renoise": True, "state": "new"}],
    ids=["renoise", "euler", "sparse", "state"],
)
def test_the_roll_out_in_training_is_the_stream(tiny_wan, prompts, tmp_path, more, graph):
    """The same noise gives the same latents, chunk after chunk, long after frames have left the window."""
    run = opened(tiny_wan, prompts, tmp_path, train_batch_size=1, stream_args=more)
    trained(run)
    told = {name: value for name, value in more.items() if name != "state"}
    wanted, noise = from_a_stream(run, 5, state=run.task.state, **told)
    text = run.task._asked(0, 0)
    with torch.enable_grad():
        found = run.task.roll(text, lambda chunk, step: noise[chunk, step], 2, 5, graph)
    assert all(each.requires_grad == (graph is not None) for each in found)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, atol=2e-5, rtol=1e-4)
    if "state" in more:
        plain, _ = from_a_stream(run, 5, **told)
        same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, wanted, strict=True)]
        assert same[:2] == [True, True] and not same[2]


@pytest.mark.parametrize("state", [{}, {"state": "new"}], ids=["plain", "state"])
def test_gradients_flow_through_the_step_where_a_chunk_ends_alone(tiny_wan, prompts, tmp_path, state):
    """The gradient is that of the last answers, with what they were given held fixed."""
    run = opened(tiny_wan, prompts, tmp_path, stream_args=state, chunks=4)
    trained(run)
    task, text = run.task, run.task._asked(0, 0)

    def noise(chunk, step):
        return task._chunk_noise(0, 0, 0, chunk, step)

    calls, answer = [], task._answer

    def kept(network, noisy, level, *more):
        found = answer(network, noisy, level, *more)
        calls.append((float(torch.as_tensor(level).flatten()[0]), found.requires_grad, noisy.requires_grad))
        return found

    task._answer = kept
    made = task.roll(text, noise, 1, 4, 2)
    levels = task.grid.levels
    assert calls == [
        entry
        for chunk in range(4)
        for entry in [
            (pytest.approx(levels[0]), False, False), (pytest.approx(levels[1]), chunk >= 2, False),
            *([(0.0, False, False)] if chunk < 3 else []),
        ]
    ]  # fmt: skip
    assert [each.requires_grad for each in made] == [False, False, True, True]
    torch.cat(made, 2).square().sum().backward()
    grads = [value.grad for value in task.parameters() if value.requires_grad and value.grad is not None]
    assert grads and all(each.isfinite().all() for each in grads)
    if state:
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in task.state.parameters())
    # A chunk's latents do not pull on earlier ones: alone its gradient is what it adds to the sum.
    whole = [value.grad.clone() for value in run.built.adapter.parameters.values()]
    parts = []
    for chunk in (2, 3):
        task.zero_grad(set_to_none=True)
        task.roll(text, noise, 1, 4, 2)[chunk].square().sum().backward()
        parts.append([value.grad.clone() for value in run.built.adapter.parameters.values()])
    for total, one, other in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, one + other, atol=1e-4, rtol=1e-3)


def test_updates_take_turns_and_touch_their_own_weights(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, fake_updates=2, chunks=3, stream_args={"state": "new"})
    trained(run)
    for number in range(6):
        loss, figures = run.task(number)
        student = number % 3 == 2
        assert ("loss student" in figures) == student and ("loss fake" in figures) == (not student)
        run.task.zero_grad(set_to_none=True)
        loss.backward()
        for name, value in run.task.named_parameters():
            if value.requires_grad and value.grad is not None:
                assert name.startswith("scores.") != student, name


def test_the_loss_is_distribution_matching_of_the_last_clip(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path)
    trained(run)
    task, text = run.task, run.task._asked(0, 0)
    loss, _ = task._student_loss(1, 0, 0, text, [])
    clean, again, level = task._matched(1, 0, 0, text, [], train=True)
    assert clean.shape[2] == 4 and clean.requires_grad and ((level >= 0.02) & (level <= 0.98)).all()
    with torch.no_grad():
        fake = task._clean(task.scores, again, level, text)
        with task._off() as teacher:
            real = again - level.view(-1, 1, 1, 1, 1) * task._guided(teacher, again, level, text)
    torch.testing.assert_close(loss, student_loss(clean, real, fake), atol=1e-6, rtol=1e-5)


def test_a_student_that_makes_what_the_teacher_makes_is_left_alone(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, guidance_scale=1.0)
    assert run.task(1)[1]["distance"] < 1e-6
    assert opened(tiny_wan, prompts, tmp_path).task(1)[1]["distance"] > 1e-4


def test_longer_roll_outs_end_in_a_clip_that_begins_with_a_picture(tiny_wan, prompts, tmp_path):
    run = opened(tiny_wan, prompts, tmp_path, chunks=4)
    task, text = run.task, run.task._asked(0, 0)
    lengths = set()
    for step in range(12):
        rolled = task._rolled_out(step, 0, 0, text, True)
        lengths.add(rolled.made.shape[2])
        clip = task._clip(rolled.made)
        assert clip.shape[2] == 4 and torch.equal(clip[:, :, 1:], rolled.made[:, :, -3:])
        assert torch.equal(clip[:, :, 0], rolled.made[:, :, -4]) == (rolled.made.shape[2] == 4)
        assert rolled.noise.shape == rolled.made.shape
    assert lengths == {4, 6, 8}


def test_reflow_is_the_distance_to_the_teachers_clip_from_the_same_noise(tiny_wan, prompts, tmp_path):
    plain = opened(tiny_wan, prompts, tmp_path, steps=2)
    run = opened(tiny_wan, prompts, tmp_path, steps=2, reflow_weight=0.5)
    text, seen = run.task._asked(0, 0), set()
    for step in range(8):
        loss, figures = run.task._student_loss(step, 0, 0, text, [])
        without, _ = plain.task._student_loss(step, 0, 0, text, [])
        rolled = run.task._rolled_out(step, 0, 0, text, False)
        seen.add(rolled.exit)
        if rolled.exit:
            assert "loss reflow" not in figures
            continue
        wanted = rolled.noise
        for each in range(2):
            wanted = run.task._teach(wanted, text, each)
        distance = (rolled.made - wanted).square().mean()
        torch.testing.assert_close(loss, without + 0.5 * distance, atol=1e-5, rtol=1e-4)
    assert seen == {0, 1}


def test_a_run_that_was_stopped_ends_as_an_unbroken_one_and_its_files_stream(tiny_wan, prompts, tmp_path, capsys):
    from genkit.cli.main import main

    more = {"chunks": 3, "stream_args": {"state": "new", "keep": 0.5}}
    once = distill(settings(tiny_wan, prompts, tmp_path / "once", **more))
    twice = tmp_path / "twice"
    distill(settings(tiny_wan, prompts, twice, max_train_steps=3, **more))
    for name in (NAMED, "state.safetensors"):
        (twice / name).unlink()
    distill(settings(tiny_wan, prompts, twice, resume_from_checkpoint="latest", **more))
    for name in (NAMED, "state.safetensors"):
        one = same_weights(once.parent / name, twice / name)
    assert any(value.abs().sum() > 0 for value in one.values()), "the state is trained"
    facts = read_facts(check_safetensors(once)["__metadata__"], "the file")
    wanted = {"context": "cache", **WINDOW, "keep": 0.5, "renoise": True, "state": "state.safetensors"}
    assert facts.sampling.stream == wanted and facts.sampling.guidance_scale == 1.0
    run = ["generate", "a red circle", "--model", str(tiny_wan), "--stream", "--lora", str(twice), "--num-frames", "17",
           "--height", "32", "--width", "32", "--seed", "1", "-o", str(tmp_path / "clip.mp4"), "--force"]  # fmt: skip
    assert main(run) == 0
    assert "state.safetensors" in "".join(capsys.readouterr())
    # Goes on: the second stage begins with what the first one made.
    begun = opened(
        tiny_wan, prompts, tmp_path / "on", init_lora=str(twice), chunks=3,
        stream_args={"state": str(twice / "state.safetensors"), "keep": 0.5},
    )  # fmt: skip
    held = begun.task.state.weights.named_weights()
    assert all(torch.equal(held[name], value) for name, value in one.items())
    (twice / "state.safetensors").unlink()
    assert main(run) != 0
    assert "state.safetensors, which is not beside it" in "".join(capsys.readouterr())


def test_the_command_tells_the_roll_out(tiny_wan, prompts, tmp_path, capsys):
    from genkit.cli.main import main

    flags = [
        "train", "distill", "--kind", "self-forcing", "--model", str(tiny_wan), "--prompts", str(prompts), "--height",
        "32", "--width", "32", "--num-frames", "13", "--steps", "2", "--rank", "2",
        "--chunks", "3", "--stream-args", "chunk=2,sink=1,recent=2,trained=5,state=new",
    ]  # fmt: skip
    assert main([*flags, "--max-train-steps", "2", "--json", "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chunks of the longest roll-out"] == 3 and "state=state.safetensors" in found["stream"]
    assert found["memory"]["peak"] > 0
    for budget, told in (("--max-train-steps 2", "2"), ("--minutes 1", "as many as 1 minute allows")):
        assert main([*flags, *budget.split(), "--output", str(tmp_path / "dry"), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"train steps: {told}\n" in said and "chunks of the longest roll-out: 3\n" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"own_path": 0.2}, "belongs to steps"),
        ({"renoise": 0.5}, "belongs to tdm"),
        ({"fake_attention": True}, "belongs to tdm"),
        ({"chunks": 1}, "--chunks: got 1, allowed: at least 2"),
        ({"chunks": 0}, "chunks"),
        ({"reflow_weight": -1.0}, "reflow"),
        ({"kind": "causal", "chunks": 4}, "belongs to self-forcing"),
        ({"kind": "causal", "reflow_weight": 1.0}, "belongs to self-forcing"),
        ({"num_frames": 17}, "13 or 21: whole chunks"),
        ({"attention": "neighborhood", "attention_args": {"size": "1x1x1"}}, "same layers"),
        ({"gradient_checkpointing": True}, "--gradient-checkpointing"),
        ({"stream_args": {"state": "nowhere.safetensors"}}, "nowhere"),
        ({"stream_args": {"state": 3}}, "a text"),
        ({"stream_args": {"keep": 1.5}}, "keep of a stream"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tiny_wan, prompts, tmp_path, change, said):
    with pytest.raises((UsageError, UnsupportedError, ArtifactError), match=said) as caught:
        Plan.of(settings(tiny_wan, prompts, tmp_path, **change))
    assert "\n" not in str(caught.value)


def test_several_processes_are_refused(tiny_wan, prompts, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="--kind self-forcing runs in one process"):
        Plan.of(settings(tiny_wan, prompts, tmp_path))


def test_a_state_is_refused_where_nothing_is_cached(tiny_wan, tmp_path, capsys):
    from genkit.cli.main import main

    run = ["generate", "a red circle", "--model", str(tiny_wan), "--stream", "--num-frames", "9", "-o",
           str(tmp_path / "clip.mp4")]  # fmt: skip
    for args, said in (("context=frames,state=x.safetensors", "state belongs to context=cache"),
                       ("context=cache,state=x.safetensors", "x.safetensors")):  # fmt: skip
        assert main([*run, "--stream-args", args]) != 0
        told = "".join(capsys.readouterr())
        assert said in told and "Traceback" not in told
