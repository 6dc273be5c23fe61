"""Omni-full attention on plain tensors and in a small joint transformer of video, sound and their captions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from genkit.attention.omni_full import ACTIVE, STREAMS, modality_mask, omni_full_attention, temporal_ids, turned_by_time
from genkit.errors import UsageError

LENGTHS = {"video": 12, "video_text": 5, "audio_text": 4, "audio": 7}
HEADS, WIDTH = 2, 8


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(names=STREAMS, batch=2):
    """Queries, keys and values of streams; a stream's do not depend on which others there are."""
    return [
        {name: draw(batch, LENGTHS[name], HEADS, WIDTH, seed=10 * STREAMS.index(name) + part) for name in names}
        for part in range(3)
    ]


def dense(q, k, v):
    return (
        nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    )  # fmt: skip


def test_all_streams_are_one_attention_and_the_full_mask_changes_nothing():
    q, k, v = tokens()
    found = omni_full_attention(q, k, v)
    joined = dense(*(torch.cat(list(part.values()), 1) for part in (q, k, v)))
    torch.testing.assert_close(torch.cat(list(found.values()), 1), joined, atol=1e-6, rtol=1e-5)
    masked = omni_full_attention(q, k, v, modality_mask("t2av"))
    assert all(torch.equal(masked[name], found[name]) for name in STREAMS)


@pytest.mark.parametrize("task", ACTIVE)
def test_a_masked_task_is_the_attention_of_its_streams_alone(task):
    q, k, v = tokens()
    here = ACTIVE[task]
    found = omni_full_attention(q, k, v, modality_mask(task))
    alone = omni_full_attention(*tokens(here))
    for name in STREAMS:
        if name in here:
            torch.testing.assert_close(found[name], alone[name], atol=5e-7, rtol=1e-5)
        else:
            assert not found[name].any()


def test_a_stream_that_is_not_there_moves_nothing():
    q, k, v = tokens()
    louder = [{name: 100 * value if name == "audio" else value for name, value in part.items()} for part in (q, k, v)]
    one, two = (omni_full_attention(*part, modality_mask("t2v")) for part in ((q, k, v), louder))
    assert torch.equal(one["video"], two["video"])
    one, two = (omni_full_attention(*part, modality_mask("t2av")) for part in ((q, k, v), louder))
    assert not torch.allclose(one["video"], two["video"], atol=1e-2)


def test_rows_of_a_batch_have_their_own_tasks():
    q, k, v = tokens(batch=3)
    tasks = ("t2v", "t2av", "t2a")
    whole = omni_full_attention(q, k, v, modality_mask(tasks))
    for row, task in enumerate(tasks):
        one = [{name: value[row : row + 1] for name, value in part.items()} for part in (q, k, v)]
        alone = omni_full_attention(*one, modality_mask(task))
        assert all(torch.allclose(whole[name][row], alone[name][0], atol=1e-6) for name in STREAMS)


def test_the_order_of_streams_does_not_matter():
    right = omni_full_attention(*tokens(), modality_mask("t2v"))
    for order in itertools.permutations(STREAMS):
        found = omni_full_attention(*tokens(order), modality_mask("t2v", order))
        assert all(torch.allclose(found[name], right[name], atol=1e-6) for name in STREAMS)


@pytest.mark.parametrize(("task", "share"), [("t2v", 0.3686), ("t2a", 0.1543), ("t2av", 1.0)])
def test_densities_of_the_tasks(task, share):
    lengths = torch.tensor([LENGTHS[name] for name in STREAMS])
    pairs = lengths[:, None] * lengths
    assert float((pairs * modality_mask(task)).sum() / pairs.sum()) == pytest.approx(share, abs=5e-5)


def test_positions_of_both_modes():
    video, offset = temporal_ids(15, 215, 3, 43, "offset")
    assert video.tolist() == list(range(15)) and offset.tolist() == list(range(15, 230))
    _, aligned = temporal_ids(15, 215, 3, 43)
    assert aligned[0] == 0 and float(aligned[1]) == pytest.approx(0.0698, abs=5e-5)
    assert float(aligned[-1]) == pytest.approx(14.9302, abs=5e-5)


def test_aligned_scores_depend_on_the_difference_of_times_and_are_largest_at_none():
    vector = draw(1, 1, 1, WIDTH)
    video, audio = temporal_ids(6, 40, 2, 16)

    def scores(shift=0.0):
        q = turned_by_time(vector.expand(1, 6, 1, -1), video + shift, 4)
        k = turned_by_time(vector.expand(1, 40, 1, -1), audio + shift, 4)
        return torch.einsum("bnhd,bmhd->nm", q, k)

    plain = scores()
    torch.testing.assert_close(scores(7.0), plain, atol=1e-4, rtol=1e-4)
    for frame in range(5):
        assert int(plain[frame].argmax()) == 8 * frame  # 16 sound tokens and 2 frames a second
        torch.testing.assert_close(plain[frame, 8 * frame], vector.square().sum(), atol=1e-4, rtol=1e-4)
    # what is not turned stays as it is
    assert torch.equal(turned_by_time(vector, video[3:4], 4)[..., 4:], vector[..., 4:])


def test_what_does_not_fit_is_refused():
    q, k, v = tokens()
    for call, text in (
        (lambda: modality_mask("v2t"), "task: got 'v2t', allowed: t2av"),
        (lambda: modality_mask("t2v", ("video", "smell")), "stream: got 'smell'"),
        (lambda: omni_full_attention(q, dict(reversed(k.items())), v), "streams of keys and values"),
        (lambda: omni_full_attention(q, k, v, torch.ones(3, 3, dtype=torch.bool)), "visible: got \\(3, 3\\)"),
        (lambda: omni_full_attention(q, {**k, "audio": k["audio"][:, 1:]}, v), "as many keys as queries"),
        (lambda: temporal_ids(2, 3, 1, 1, "shared"), "mode: got 'shared'"),
        (lambda: turned_by_time(draw(1, 2, 1, 8), torch.arange(2), 3), "width: got 3"),
    ):
        with pytest.raises(UsageError, match=text):
            call()


class Stream(nn.Module):
    """Projections, modulation and feed-forward of one stream in one layer."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.between = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.told = nn.Linear(1, 6 * width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class JointTransformer(nn.Module):
    """Two layers of omni-full attention over four streams; video and sound have outputs."""

    def __init__(self, features=3, layers=2):
        super().__init__()
        torch.manual_seed(0)
        width = HEADS * WIDTH
        self.inputs = nn.ModuleDict({name: nn.Linear(features, width) for name in STREAMS})
        self.layers = nn.ModuleList(nn.ModuleDict({name: Stream(width) for name in STREAMS}) for _ in range(layers))
        self.outputs = nn.ModuleDict({name: nn.Linear(width, features) for name in ("video", "audio")})

    def forward(self, streams, level, visible=None):
        states = {name: self.inputs[name](value) for name, value in streams.items()}
        frames, sound = temporal_ids(3, LENGTHS["audio"], 3, 7)
        ids = {"video": frames.repeat_interleave(4), "audio": sound}
        for layer in self.layers:
            parts, told = ({}, {}, {}), {}
            for name, value in states.items():
                own = layer[name]
                told[name] = own.told(level[:, None])[:, None].chunk(6, -1)
                hidden = own.norm(value) * (1 + told[name][0]) + told[name][1]
                heads = [make(hidden).unflatten(-1, (HEADS, WIDTH)) for make in (own.q, own.k, own.v)]
                heads[:2] = own.norm_q(heads[0]), own.norm_k(heads[1])
                if name in ids:
                    heads[:2] = (turned_by_time(each, ids[name], 4) for each in heads[:2])
                for part, head in zip(parts, heads, strict=True):
                    part[name] = head
            mixed = omni_full_attention(*parts, visible)
            for name in states:
                own = layer[name]
                value = states[name] + told[name][2] * own.out(mixed[name].flatten(-2))
                hidden = own.between(value) * (1 + told[name][3]) + told[name][4]
                states[name] = value + told[name][5] * own.feed(hidden)
        return {name: head(states[name]) for name, head in self.outputs.items() if name in states}


def clip(batch=2):
    return {name: draw(batch, LENGTHS[name], 3, seed=50 + number) for number, name in enumerate(STREAMS)}


@pytest.mark.parametrize(("task", "made", "idle"), [("t2v", "video", "audio"), ("t2a", "audio", "video")])
def test_a_joint_transformer_on_a_masked_task_is_one_without_the_other_streams(task, made, idle):
    model, streams, level = JointTransformer(), clip(), torch.tensor([0.3, 0.8])
    masked = model(streams, level, modality_mask(task))
    alone = model({name: streams[name] for name in ACTIVE[task]}, level)
    torch.testing.assert_close(masked[made], alone[made], atol=1e-5, rtol=1e-5)
    louder = {name: value if name in ACTIVE[task] else 9 * value for name, value in streams.items()}
    assert torch.equal(model(louder, level, modality_mask(task))[made], masked[made])
    # The loss of the stream that is made teaches the others nothing, heads and layers alike.
    (masked[made] - 1).square().mean().backward()
    for name, value in model.named_parameters():
        mine = any(f".{stream}." in f".{name}." for stream in ACTIVE[task])
        last = name.startswith("layers.1.") and f".{made}." not in name  # what the last layer says to captions
        assert mine or value.grad is None or not value.grad.any(), name
        assert not mine or last or value.grad.any(), name
    assert model.outputs[idle].weight.grad is None or not model.outputs[idle].weight.grad.any()


def test_a_joint_transformer_learns_all_tasks_at_once():
    """The sound is the video's mean and the video follows its caption: both tasks and each alone get better."""
    model, level = JointTransformer(), torch.zeros(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    streams = clip(8)
    streams["video"] = streams["video_text"].mean(1, keepdim=True).expand(-1, 12, -1) + 0.3 * streams["video"]
    target = {"video": streams["video_text"].mean(1, keepdim=True).expand(-1, 12, -1)}
    target["audio"] = target["video"][:, :7]
    losses = {task: [] for task in ("t2av", "t2v", "t2a")}
    for step in range(90):
        task = ("t2av", "t2v", "t2a")[step % 3]
        found = model(streams, level, modality_mask(task))
        made = [name for name in ("video", "audio") if name in ACTIVE[task]]
        loss = sum((found[name] - target[name]).square().mean() for name in made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[task].append(loss.item())
    assert all(values[-1] < 0.5 * values[0] for values in losses.values()), losses
