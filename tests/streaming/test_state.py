"""What left the window: sums against their closed form, when they are taken in where they stand, reset and files."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from streams import SIZE, wan

from genkit.errors import ArtifactError, UsageError
from genkit.streaming import RollingCache, Stream, TemporalState, Window, rotate
from genkit.streaming.state import EPS, Memory, linear

CACHED = {"context": "cache", "chunk": 2, "sink": 1, "recent": 2, "trained": 6, **SIZE}


@pytest.fixture(scope="module")
def pipe():
    return wan()


@pytest.fixture(autouse=True)
def _no_ftfy(monkeypatch):
    from types import SimpleNamespace

    from diffusers.pipelines.wan import pipeline_wan

    monkeypatch.setattr(pipeline_wan, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def angles(positions, dim, tokens=1):
    """Tables (1, N, 1, D) of rotary positions, every number twice."""
    rates = 100.0 ** -(torch.arange(dim // 2) / (dim // 2))
    turns = (torch.tensor(list(positions)).repeat_interleave(tokens)[:, None] * rates).repeat_interleave(2, -1)
    return turns.cos()[None, :, None], turns.sin()[None, :, None]


def filled(pipe, scale=0.3):
    state, draw = TemporalState.of(pipe.transformer), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in state.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=draw))
    return state


def test_sums_taken_in_one_by_one_are_the_closed_form():
    """Oracle 1: four chunks of 6 tokens, h = 2, d = 8; the reference gives 9.5e-7."""
    draw = torch.Generator().manual_seed(0)
    k, v, q = (torch.randn(2, 24, 2, 8, generator=draw) for _ in range(3))
    tables = angles(range(24), 8)
    memory = Memory()
    for place in (slice(6 * number, 6 * number + 6) for number in range(4)):
        memory.absorb("layer", k[:, place], v[:, place], tuple(table[:, place] for table in tables))
    turned, n = rotate(q, tables).double(), 24
    keys = rotate(k, tables).double()
    scores = torch.einsum("bqhd,bkhd->bhqk", turned, keys)
    below = torch.einsum("bqhd,bkhd->bhq", q.relu().double(), k.relu().double()) + EPS * n
    below = torch.maximum(below, 1e-3 * below.abs().mean(-1, keepdim=True))
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores, v.double()) / below.transpose(1, 2).unsqueeze(-1)
    assert memory.layers["layer"].count == n
    assert (memory.read("layer", q, rotate(q, tables)) - wanted).abs().max() < 5e-6 * wanted.abs().max()
    assert (scores < 0).double().mean() > 0.4, "weights can be negative: the numerator has no feature map"


def test_what_is_taken_in_when_and_where_is_the_papers_table():
    """Oracle 2: chunk -> query start, frames of the window, frames taken in, their first position."""
    window = Window(3, 3, 3, 21)
    table = {
        0: (0, 3, None, None), 1: (3, 6, None, None), 2: (6, 9, (0, 1, 2), 0), 3: (9, 9, (3, 4, 5), 3),
        6: (18, 9, (12, 13, 14), 12), 7: (18, 9, (15, 16, 17), 12), 10: (18, 9, (24, 25, 26), 12),
    }  # fmt: skip
    for chunk, (start, seen, taken, first) in table.items():
        made = 3 * chunk
        assert window.positions(made)[-3] == start and len(window.kept(made)) + 3 == seen
        if chunk:  # taken in when the chunk before is done
            assert window.leaving(made - 3) == (taken or ())
            assert window.leaving_positions(made - 3)[:1] == (() if first is None else (first,))
    window, before, seen = Window(3, 1, 3, 7), 0, []
    for chunk in range(6):
        seen += window.leaving(3 * chunk)
        assert len(seen) == 3 * chunk and len(window.leaving(before)) == len(window.leaving_positions(before))
        assert all(0 <= position < 7 for position in window.leaving_positions(3 * chunk))
    assert seen == list(range(15)), "every frame once"


@pytest.mark.parametrize(("sink", "recent", "chunk"), [(3, 3, 3), (1, 3, 3), (0, 1, 2), (1, 0, 2), (2, 3, 2)])
def test_a_cache_gives_its_memory_what_a_list_of_everything_gives(sink, recent, chunk):
    window, tokens = Window(chunk, sink, recent, 9), 2
    draw, everything = torch.Generator().manual_seed(1), []
    cache, by_hand = RollingCache(window, memory=Memory()), Memory()

    def tables(positions):
        return angles(positions, 4, tokens)

    for number in range(6):
        made = number * chunk
        k, v = (torch.randn(1, chunk * tokens, 2, 4, generator=draw) for _ in range(2))
        gone = window.leaving_positions(made)
        cache.begin(tables(window.positions(made)), tokens, tables(gone) if gone else None)
        cache.seen("layer", k, v, True)
        everything += list(zip(k.split(tokens, 1), v.split(tokens, 1), strict=True))
        cache.commit()
        gone = [frame for frame in range(made + chunk) if frame < made + chunk - recent and frame >= made - recent]
        if gone:
            keys, values = (torch.cat([everything[frame][part] for frame in gone], 1) for part in (0, 1))
            by_hand.absorb("layer", keys, values, tables(window.leaving_positions(made)))
        if by_hand.layers:
            mine, theirs = cache.memory.layers["layer"], by_hand.layers["layer"]
            assert torch.equal(mine.kv, theirs.kv) and torch.equal(mine.km, theirs.km) and mine.count == theirs.count
    assert cache.memory.layers["layer"].count == tokens * (6 * chunk - recent)
    held = cache.memory.bytes
    cache.clear()
    assert held == 4 * 2 * (4 + 16) and cache.memory.bytes == 0


def test_gradients_of_what_is_read():
    """Oracle 9."""
    draw = torch.Generator().manual_seed(2)
    q, turned, km, kv, weight = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((1, 5, 2, 4), (1, 5, 2, 4), (1, 2, 4), (1, 2, 4, 4), (4, 4))
    )
    bias, km = torch.randn(4, generator=draw, dtype=torch.float64), km.abs()
    wanted = [x.requires_grad_() for x in (q, turned, weight, bias)]
    assert torch.autograd.gradcheck(lambda a, b, w, c: linear(a, b, km, kv) @ w + c, wanted)


def test_a_query_that_is_negative_throughout_does_not_blow_up():
    q = -torch.ones(1, 4, 1, 4)
    q[:, :3] = 1.0
    y = linear(q, q, torch.ones(1, 1, 4), torch.ones(1, 1, 4, 4))
    assert y.isfinite().all() and y.abs().max() <= 4 / (1e-3 * 3)


def test_positions_moved_together_change_nothing():
    """Oracle 7."""
    draw = torch.Generator().manual_seed(3)
    k, v, q = (torch.randn(1, 12, 2, 8, generator=draw) for _ in range(3))
    found = []
    for shift in (0, 7):
        memory, at = Memory(), angles(range(shift, shift + 12), 8)
        memory.absorb("layer", k, v, at)
        found.append(memory.read("layer", q, rotate(q, at)))
    torch.testing.assert_close(*found, atol=1e-5 * float(found[0].abs().max()), rtol=1e-5)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_a_state_of_zeros_is_no_state_bit_for_bit(pipe, keep):
    """Oracle 6; a state that is trained changes chunks from the first on after something has left."""
    runs = []
    for state in (None, TemporalState.of(pipe.transformer), filled(pipe)):
        stream = Stream(pipe, "a red circle", keep=keep, state=state, seed=2, guidance_scale=2.0, **CACHED)
        runs.append([chunk.frames for chunk in islice(stream, 4)])
    assert all(np.array_equal(*pair) for pair in zip(runs[0], runs[1], strict=True))
    same = [np.array_equal(*pair) for pair in zip(runs[0], runs[2], strict=True)]
    assert same == [True, True, False, False]


def test_a_state_does_not_grow_and_is_put_back_with_the_stream(pipe):
    state = filled(pipe)
    stream = Stream(pipe, "a red circle", state=state, seed=5, **CACHED)
    frames, held = [], []
    for chunk in islice(stream, 6):
        frames.append(chunk.frames)
        held.append(sum(cache.memory.bytes for cache in stream.caches.values()))
    assert held[0] == 0 and held[2] == held[-1] > 0
    counts = {sums.count for cache in stream.caches.values() for sums in cache.memory.layers.values()}
    assert counts == {stream._tokens * (12 - 2)}

    stream.reset()
    again = [next(stream).frames for _ in range(3)]
    decode = stream.decoder.decode

    def fails(latents):
        raise KeyboardInterrupt

    stream.decoder.decode = fails
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    stream.decoder.decode = decode
    again += [next(stream).frames for _ in range(3)]
    assert all(np.array_equal(*pair) for pair in zip(frames, again, strict=True))
    stream.close()
    assert stream.bytes == 0


def test_weights_are_a_file_that_streams_load(pipe, tmp_path):
    state = filled(pipe)
    path = state.save(tmp_path / "state.safetensors")
    dim = pipe.transformer.config.attention_head_dim
    shapes = {tuple(value.shape) for value in load_file(path).values()}
    assert shapes == {(dim, dim), (dim,)} and len(load_file(path)) == 2 * pipe.transformer.config.num_layers
    pair = [Stream(pipe, "a red circle", state=each, seed=1, **CACHED) for each in (state, path)]
    runs = [[chunk.frames for chunk in islice(stream, 3)] for stream in pair]
    assert all(np.array_equal(*both) for both in zip(*runs, strict=True))


def test_states_that_mean_nothing_are_refused(pipe, tmp_path):
    from genkit.attention.weights import PatchWeights

    with pytest.raises(UsageError, match="state belongs to context='cache'"):
        Stream(pipe, "a", context="frames", recent=1, trained=4, state=filled(pipe), **SIZE)
    with pytest.raises(UsageError, match="state of a stream"):
        Stream(pipe, "a", state=3, **CACHED)
    with pytest.raises(ArtifactError, match="nowhere"):
        Stream(pipe, "a", state=tmp_path / "nowhere.safetensors", **CACHED)
    other = TemporalState({"blocks.0.attn1": 6})
    with pytest.raises(ArtifactError, match="state.safetensors"):
        Stream(pipe, "a", state=other.save(tmp_path / "state.safetensors"), **CACHED)
    foreign = PatchWeights()
    foreign.put("agent", "blocks.0.attn1", torch.nn.Linear(2, 2), {})
    with pytest.raises(ArtifactError, match="none of a stream's state"):
        Stream(pipe, "a", state=foreign.save(tmp_path / "foreign.safetensors"), **CACHED)
