"""Who reads the partner and who the context: tasks, guidance, gradients that are stopped."""

from __future__ import annotations

import pytest
import torch
from cross_modal_helpers import draw, installed, ltx, site

from genkit.attention.cache import PatchCache
from genkit.attention.cross_modal_context import CrossModalContext
from genkit.attention.cross_modal_context.route import (
    PROBABILITIES,
    TASKS,
    ContextRoute,
    context_guidance,
    draw_tasks,
    joint_guidance,
    rescaled,
    stop_gradient,
)
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError


def test_rows_that_read_context_alone_ignore_the_partner_exactly():
    video, audio = ltx(3, 10)
    where, method = site("video_to_audio", video, audio), CrossModalContext(tokens=2)
    cache, _, _ = installed(method, where)
    with torch.no_grad():
        PatchWeights.of(cache).at(method.name, "x").values.copy_(draw(2, 2, 4, seed=9))
    route = ContextRoute.of(cache)
    route.set(["a2v", "v2a"])
    route.freeze(False, {})
    q, k, v = draw(4, 10, 2, 4), draw(4, 3, 2, 4, seed=1), draw(4, 3, 2, 4, seed=2)
    leaf = v.clone().requires_grad_()
    first = method.attend(q, k, leaf, where, cache)
    other = method.attend(q, 3 * k, v + 1, where, cache)
    assert torch.equal(first[0::2], other[0::2]) and not torch.equal(first[1::2], other[1::2])
    first.sum().backward()
    assert not leaf.grad[0::2].any() and leaf.grad[1::2].any()
    route.set("context")
    route.freeze(False, {})
    assert torch.equal(method.attend(q, k, v, where, cache)[0], first[0])


def test_guidance_is_linear_and_off_at_scale_one():
    full, text, alone, nothing = (draw(2, 3, 4, seed=seed) for seed in range(4))
    assert torch.equal(context_guidance(full, text, alone, 4.0, 1.0), full + 3 * (full - text))
    steps = [context_guidance(full, text, alone, 4.0, scale) for scale in (1.0, 2.0, 3.0)]
    torch.testing.assert_close(steps[2] - steps[1], steps[1] - steps[0])
    # negative prompt = positive prompt: x_txt0 = x_c and x_j0 = x_ctx0
    for text_scale in (1.0, 7.0):
        torch.testing.assert_close(
            joint_guidance(full, alone, 3.0), context_guidance(full, full, alone, text_scale, 3.0)
        )
    assert not torch.allclose(joint_guidance(full, nothing, 3.0), context_guidance(full, text, alone, 3.0, 3.0))
    back = rescaled(5 * full, full, 1.0)
    torch.testing.assert_close(back.std((1, 2)), full.std((1, 2)))
    assert torch.equal(rescaled(steps[0], full, 0.0), steps[0])


def test_stopped_gradients_are_exactly_zero():
    x = draw(3, 4, 2).requires_grad_()
    y = stop_gradient(x, (True, False, True))
    assert torch.equal(y, x)
    y.sum().backward()
    assert not x.grad[0].any() and not x.grad[2].any() and x.grad[1].eq(1).all()
    video, audio = ltx(3, 10)
    where = site("audio_to_video", video, audio)
    cache, module, hooks = installed(CrossModalContext(tokens=2), where)
    route = ContextRoute.of(cache)
    route.set(["a2v", "t2av"])
    route.freeze(False, {})
    source = draw(2, 10, 6, seed=3).requires_grad_()
    module(None, encoder_hidden_states=source).backward()
    assert not source.grad[0].any() and source.grad[1].any() and module.to_k.weight.grad.any()
    for hook in hooks:
        hook.remove()
    assert not module._forward_pre_hooks and not module._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize(
    ("task", "to_video", "to_audio", "detach", "noise", "loss"),
    [
        ("t2av", "both", "both", (False, False), (True, True), (True, True)),
        ("i2av", "both", "both", (False, False), (True, True), (True, True)),
        ("t2v", "context", "context", (False, False), (True, False), (True, False)),
        ("t2a", "context", "context", (False, False), (False, True), (False, True)),
        ("a2v", "both", "context", (True, False), (True, False), (True, False)),
        ("v2a", "context", "both", (False, True), (False, True), (False, True)),
    ],
)
def test_every_task_reads_detaches_and_counts_what_its_row_says(task, to_video, to_audio, detach, noise, loss):
    row = TASKS[task]
    assert (row.to_video, row.to_audio, (row.detach_audio, row.detach_video)) == (to_video, to_audio, detach)
    assert (row.noise, row.loss) == (noise, loss)
    route = ContextRoute()
    route.set([task, "t2av"])
    route.freeze(False, {})
    assert route.reads("audio_to_video", 4) == (to_video, "both") * 2
    assert route.detached("video_to_audio", 2) == (detach[1], False)


def test_streams_without_noise_pass_no_gradient():
    route = ContextRoute()
    route.freeze(False, {"audio": [True, False], "video": [False, False]})
    assert route.detached("audio_to_video", 2) == (True, False) and route.detached("video_to_audio", 2) == (False,) * 2
    route.freeze(True, {"audio": [True, False]})
    assert route.reads("audio_to_video", 3) == ("context",) * 3
    method, cache = CrossModalContext(), PatchCache()
    method.observe({"timestep": torch.tensor([500, 500]), "audio_timestep": torch.tensor([[0, 0], [0, 7]])}, cache)
    assert ContextRoute.of(cache).detached("audio_to_video", 2) == (True, False)
    with torch.no_grad():
        method.observe({"timestep": torch.tensor([0, 0])}, cache)
    assert ContextRoute.of(cache).detached("audio_to_video", 2) == (False, False)


def test_tasks_are_drawn_by_their_shares():
    names = draw_tasks(4000, torch.Generator().manual_seed(0))
    total = sum(PROBABILITIES.values())
    assert total == pytest.approx(1.10)
    for task, share in PROBABILITIES.items():
        wanted = share / total * (0.9 if task == "t2av" else 1.0)
        assert names.count(task) / 4000 == pytest.approx(wanted, abs=0.025)
    assert names.count("context") / 4000 == pytest.approx(0.06 / total, abs=0.02)
    assert draw_tasks(9, torch.Generator().manual_seed(1)) == draw_tasks(9, torch.Generator().manual_seed(1))
    with pytest.raises(UsageError, match="task"):
        draw_tasks(2, probabilities={"t2x": 1.0})
    assert draw_tasks(3, torch.Generator().manual_seed(0), {"t2v": 0.0, "t2av": 1.0}, context=0.0) == ("t2av",) * 3
