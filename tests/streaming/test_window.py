"""What a chunk sees: the schedule of the paper, and a cache that equals rotating and attending from scratch."""

from __future__ import annotations

import pytest
import torch

from genkit.errors import UsageError
from genkit.streaming import RollingCache, Window, rotate
from genkit.streaming.attention import best_blocks

WAN = Window(chunk=3, sink=3, recent=3, trained=21)


@pytest.mark.parametrize(
    ("chunk", "start", "seen"), [(0, 0, 3), (1, 3, 6), (2, 6, 9), (3, 9, 9), (6, 18, 9), (7, 18, 9), (10, 18, 9)]
)
def test_the_schedule_of_hybrid_forcing(chunk, start, seen):
    made, positions = 3 * chunk, WAN.positions(3 * chunk)
    assert len(positions) == seen and positions[-3:] == (start, start + 1, start + 2)
    assert positions[:3] == (0, 1, 2) and max(positions) <= 20
    if chunk > 2:
        assert WAN.kept(made) == (0, 1, 2, made - 3, made - 2, made - 1)
        assert positions[3:6] == (start - 3, start - 2, start - 1)


@pytest.mark.parametrize("sizes", [(1, 0, 2, 3), (2, 3, 1, 6), (3, 1, 1, 9), (2, 1, 4, 7), (3, 4, 0, 7)])
def test_positions_are_distinct_trained_and_in_order(sizes):
    window = Window(*sizes)
    for chunk in range(12):
        made = window.chunk * chunk
        kept, positions = window.kept(made), window.positions(made)
        assert len(positions) == len(kept) + window.chunk <= window.length
        assert list(positions) == sorted(set(positions)) and 0 <= positions[0] and positions[-1] < window.trained
        assert list(kept) == sorted(set(kept)) and set(kept) <= set(range(made))
        assert made == 0 or kept  # something is remembered


def table(frames, tokens, width):
    """Cosines and sines of (frame, token) with their own angle each, every number twice."""
    angles = torch.tensor(frames).repeat_interleave(tokens)[:, None] * torch.linspace(0.1, 1.3, width // 2)
    angles = angles + torch.arange(tokens).repeat(len(frames))[:, None] * 0.05
    return tuple(fn(angles).repeat_interleave(2, -1)[None, :, None] for fn in (torch.cos, torch.sin))


def turned(x, rotary):
    """Rotation as multiplication of complex numbers."""
    cos, sin = rotary
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos[..., ::2].double(), sin[..., ::2].double())).flatten(-2).float()


@pytest.mark.parametrize("sizes", [(3, 3, 3, 21), (2, 1, 3, 8), (2, 3, 1, 6), (3, 0, 2, 5), (1, 2, 0, 3)])
def test_a_cache_holds_what_rotating_the_whole_history_gives(sizes):
    window, tokens, width = Window(*sizes), 4, 8
    gone = []
    cache = RollingCache(window, lambda *what: gone.append(what))
    past_k, past_v = [], []
    for chunk in range(7):
        made = window.chunk * chunk
        rotary = table(window.positions(made), tokens, width)
        cache.begin(rotary, tokens)
        draft, k, v = (torch.randn(2, window.chunk * tokens, 3, width) for _ in range(3))
        cache.seen("one", draft, draft, write=False)  # a noisy pass leaves nothing behind
        keys, values = cache.seen("one", k, v, write=True)
        frames = [frame for frame in window.kept(made)]
        raw_k = torch.cat([*[past_k[frame] for frame in frames], k], 1)
        raw_v = torch.cat([*[past_v[frame] for frame in frames], v], 1)
        torch.testing.assert_close(keys, turned(raw_k, rotary))
        assert torch.equal(values, raw_v)
        torch.testing.assert_close(rotate(k, cache.rotary), keys[:, -window.chunk * tokens :])
        cache.commit()
        past_k += k.split(tokens, 1)
        past_v += v.split(tokens, 1)
    dropped = {}
    for name, keys, values, first in gone:
        for number, (one, other) in enumerate(zip(keys.split(tokens, 1), values.split(tokens, 1), strict=True)):
            assert first + number not in dropped and name == "one"
            dropped[first + number] = one, other
    assert sorted(dropped) == [f for f in range(7 * window.chunk) if f not in window.kept(7 * window.chunk)]
    assert all(torch.equal(past_k[f], k) and torch.equal(past_v[f], v) for f, (k, v) in dropped.items())


def test_an_interrupted_chunk_leaves_the_cache_as_it_was():
    window = Window(2, 1, 2, 8)
    caches = [RollingCache(window) for _ in range(2)]
    chunks = [[torch.randn(1, 8, 2, 4) for _ in range(2)] for _ in range(4)]
    before: list = []
    for number, (k, v) in enumerate(chunks):
        for which, cache in enumerate(caches):
            cache.begin(table(window.positions(cache.made), 4, 4), 4)
            if which and number == 2:  # torn off in the middle of a clean pass
                cache.seen("one", torch.randn_like(k), torch.randn_like(v), write=True)
                cache.begin(table(window.positions(cache.made), 4, 4), 4)
            seen = cache.seen("one", k, v, write=True)
            if which:
                assert all(torch.equal(*pair) for pair in zip(seen, before, strict=True))
            before = [x.clone() for x in seen]
            cache.commit()
    assert caches[0].bytes == caches[1].bytes == 3 * 5 * 4 * 8 * 4


def test_nothing_is_committed_without_a_clean_pass():
    cache = RollingCache(Window(1, 1, 1, 3))
    with pytest.raises(UsageError, match="clean pass"):
        cache.commit()
    cache.begin(table((0,), 2, 4), 2)
    cache.seen("one", *torch.randn(2, 1, 2, 1, 4), write=False)
    with pytest.raises(UsageError, match="clean pass has filled the cache of one"):
        cache.commit()
    with pytest.raises(UsageError, match="2 tokens each, this chunk's have 3"):
        cache.begin(table((0,), 3, 4), 3)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((3, 3, 3, 8), "longer than the 8"), ((2, 0, 0, 4), "forget everything"), ((0, 1, 1, 4), "chunk"),
     ((1, -1, 1, 4), "sink"), ((1, 1, 1.5, 4), "recent"), ((True, 1, 1, 4), "chunk")],
)  # fmt: skip
def test_windows_that_cannot_be(sizes, said):
    with pytest.raises(UsageError, match=said):
        Window(*sizes)


@pytest.mark.parametrize(("frames", "kept"), [(3, 14), (6, 29), (9, 44)])
def test_counts_of_kept_blocks_are_the_papers(frames, kept):
    """74 query blocks of a chunk of 3 x 1560 tokens; a fifth of the key blocks, rounded down."""
    q, k = torch.randn(1, 4680, 1, 4), torch.randn(1, 1560 * frames, 1, 4)
    plan = best_blocks(q, k, 0.2)
    assert plan.blocks_q == 74 and plan.blocks_k == -(-1560 * frames // 64)
    assert bool((plan.full_count + plan.partial_count == kept).all())
