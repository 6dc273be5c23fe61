"""Cross-modal context attention on plain tensors: windows, routes, context tokens, guidance, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from genkit.attention.cache import PatchCache
from genkit.attention.cross_modal_context import CrossModalContext, context_part, windows
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
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UsageError
from genkit.layout import Segment, TokenLayout

WIDE = {"dtype": torch.float64}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def video_layout(spans, height=1, width=1, extra=()):
    """Frames with (start, end), and appended tokens with their own."""
    grid = (len(spans), height, width)
    tokens = [span for span in spans for _ in range(height * width)] + list(extra)
    segments = (Segment("grid", len(tokens) - len(extra)), Segment("keyframe", len(extra)))
    return TokenLayout(grid, segments if extra else segments[:1], intervals=tuple(tokens))


def audio_layout(spans):
    return TokenLayout((0, 0, 0), (Segment("audio", len(spans)),), intervals=tuple(spans))


def ltx(frames=16, audio=126, fps=24, height=1, width=1):
    """The clocks of LTX-2: a short first frame, a short first audio token."""
    video = [(0, 1 / fps)] + [((8 * i - 7) / fps, (8 * i + 1) / fps) for i in range(1, frames)]
    sound = [(0, 0.01)] + [(0.04 * j - 0.03, 0.04 * j + 0.01) for j in range(1, audio)]
    return video_layout(video, height, width), audio_layout(sound)


def uniform(frames, audio, height=1, width=1):
    video = [(i / frames, (i + 1) / frames) for i in range(frames)]
    return video_layout(video, height, width), audio_layout([(j / audio, (j + 1) / audio) for j in range(audio)])


def visible(rule):
    rows, columns = torch.arange(rule.n_q), torch.arange(rule.n_k)
    return rule.tile(rows[None], columns[None])[0]


def ranges(rule):
    """Windows as half-open ranges; fails where a row is not one range."""
    found = []
    for row in visible(rule):
        at = row.nonzero().flatten()
        assert len(at) == at[-1] - at[0] + 1
        found.append((int(at[0]), int(at[-1]) + 1))
    return found


def site(role, video, audio, heads=2):
    pair = (video, audio) if role == "audio_to_video" else (audio, video)
    return Site("x", 0, 1, role, heads, *pair)


class Module(torch.nn.Module):
    def __init__(self, source=6, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.to_k, self.to_v = (torch.nn.Linear(source, width, **WIDE) for _ in range(2))
        self.norm_k = torch.nn.RMSNorm(width, **WIDE)

    def forward(self, hidden_states, encoder_hidden_states):
        return self.to_k(encoder_hidden_states).sum() + self.to_v(encoder_hidden_states).square().sum()


def installed(method, where):
    cache = PatchCache()
    module = Module()
    hooks = list(method.install(Place(where.name, where.role, 0, 1, where.heads, module), cache))
    return cache, module, hooks


def test_windows_by_index_of_five_frames_and_forty_sounds():
    video, audio = uniform(5, 40)
    rule = windows.audio_of_frames_by_index(video, audio, 3)
    assert ranges(rule) == [(0, 16), (0, 24), (8, 32), (16, 40), (24, 40)]


@pytest.mark.parametrize(("c", "w"), itertools.product((5, 7, 8), (1, 3, 5)))
def test_time_and_index_form_agree_on_uniform_clocks(c, w):
    """All nine cases of the card, where every window edge touches an interval's edge."""
    video, audio = uniform(16, 16 * c)
    by_time = visible(windows.audio_of_frames(video, audio, w))
    assert torch.equal(by_time, visible(windows.audio_of_frames_by_index(video, audio, w)))
    back = visible(windows.frames_of_audio(audio, video, 1))
    assert torch.equal(back, visible(windows.frames_of_audio_by_index(audio, video, 1)))


def test_windows_and_densities_of_ltx2s_clocks():
    video, audio = ltx()
    found = ranges(windows.audio_of_frames(video, audio, 3))
    assert [found[frame] for frame in (0, 1, 2, 15)] == [(0, 11), (0, 19), (1, 27), (110, 126)]
    table = visible(windows.audio_of_frames(video, audio, 3))
    assert table.any(0).all() and round(table.float().mean().item(), 5) == 0.18998
    narrow = ranges(windows.audio_of_frames(video, audio, 1))
    assert narrow[:3] == [(0, 2), (1, 11), (10, 19)] and narrow[-1] == (118, 126)
    assert round(visible(windows.audio_of_frames(video, audio, 1)).float().mean().item(), 5) == 0.06994
    index = visible(windows.audio_of_frames_by_index(video, audio, 3))
    assert not index[:, -7:].any() and round(index.float().mean().item(), 3) == 0.163
    assert not visible(windows.audio_of_frames_by_index(video, audio, 1))[:, -14:].any()


def test_every_audio_token_sees_the_frame_it_falls_in():
    video, audio = ltx(height=2, width=3)
    table = visible(windows.frames_of_audio(audio, video, 1))
    assert (table.sum(1) == 6).all()
    for token, (start, end) in enumerate(audio.intervals):
        seen = {video.intervals[i] for i in table[token].nonzero().flatten().tolist()}
        ((begin, stop),) = seen
        middle = (start + end) / 2
        assert begin <= middle < stop or (begin, stop) == video.intervals[-1]
    wrong = visible(windows.frames_of_audio_by_index(audio, video, 1)) != table
    assert int(wrong.any(1).sum()) == 52  # what counting gets wrong here
    wide = visible(windows.frames_of_audio(audio, video, 3)).sum(1)
    assert wide.max() == 18 and wide.min() >= 12


def on_borders(frames):
    """As many audio tokens as frames, whose middles are where frames begin."""
    video, _ = uniform(frames, frames)
    return video, audio_layout([((i - 0.5) / frames, (i + 0.5) / frames) for i in range(frames)])


@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize("clocks", [on_borders(27), on_borders(10), uniform(9, 27), ltx(9, 27, 25), ltx(9, 40, 12.5)])
def test_an_audio_token_sees_its_own_frame_and_as_many_neighbours_as_asked(clocks, frames):
    """Also where its middle lies on the border of two frames, and at both ends of the clip."""
    video, audio = clocks
    table = visible(windows.frames_of_audio(audio, video, frames))
    starts = [start for start, _ in video.intervals]
    reach = (frames - 1) // 2
    for token, (start, end) in enumerate(audio.intervals):
        own = max(frame for frame, begin in enumerate(starts) if begin <= (start + end) / 2)
        wanted = range(max(own - reach, 0), min(own + reach, len(starts) - 1) + 1)
        assert table[token].nonzero().flatten().tolist() == list(wanted)


def test_windows_are_never_empty_and_appended_tokens_go_by_time():
    spans = [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3)]
    video = video_layout(spans, 1, 2, extra=[(0.12, 0.13), (9.0, 9.1)])
    audio = audio_layout([(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5)])
    heard = visible(windows.audio_of_frames(video, audio, 1))
    assert heard[6].tolist() == heard[2].tolist() == [False, True, False, False, False]
    assert heard[7].tolist() == [False, False, False, False, True]  # far behind the end: the nearest
    seen = visible(windows.frames_of_audio(audio, video, 1))
    assert seen[1].nonzero().flatten().tolist() == [2, 3]
    assert seen[4].nonzero().flatten().tolist() == [4, 5]
    middle = audio_layout([(0.12, 0.13)])
    assert visible(windows.frames_of_audio(middle, video, 1))[0].nonzero().flatten().tolist() == [2, 3, 6]


def test_merging_partner_and_context_is_one_softmax_over_both():
    """The merge against one softmax over [partner, context], computed frame by frame from gathered keys."""
    video, audio = uniform(5, 40, 2, 3)
    where = site("audio_to_video", video, audio)
    for method in (CrossModalContext(tokens=3), CrossModalContext(tokens=3, partition="index")):
        cache, _, _ = installed(method, where)
        own = PatchWeights.of(cache).at(method.name, "x")
        with torch.no_grad():
            own.values.copy_(draw(3, 2, 4, seed=5))
            own.beta.copy_(torch.tensor([-1.0, 0.5]))
        q, k, v = draw(2, 30, 2, 4), draw(2, 40, 2, 4, seed=1), draw(2, 40, 2, 4, seed=2)
        out = method.attend(q, k, v, where, cache)
        for frame, (low, high) in enumerate([(0, 16), (0, 24), (8, 32), (16, 40), (24, 40)]):
            rows = slice(frame * 6, frame * 6 + 6)
            keys = torch.cat([k[:, low:high], own.keys.expand(2, -1, -1, -1)], 1)
            values = torch.cat([v[:, low:high], own.values.expand(2, -1, -1, -1)], 1)
            logits = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], keys) / 2
            logits[..., high - low :] += own.beta[:, None, None]
            expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)
            torch.testing.assert_close(out[:, rows], expected, atol=1e-13, rtol=1e-12)


def test_partner_route_and_full_window_are_plain_attention():
    video, audio = ltx(5, 34, height=2, width=2)
    for role in ("audio_to_video", "video_to_audio"):
        where = site(role, video, audio)
        q, k, v = (draw(1, n, 2, 4, seed=seed) for seed, n in enumerate((where.layout.length, *[
            where.key_layout.length] * 2)))  # fmt: skip
        plain = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
        plain = torch.einsum("bhqk,bkhd->bqhd", plain.softmax(-1), v)
        wide = CrossModalContext(window=11, frames=11)
        torch.testing.assert_close(wide.attend(q, k, v, where, PatchCache()), plain, atol=1e-13, rtol=1e-12)
        masked = CrossModalContext(tokens=4, partition="none")
        cache, _, _ = installed(masked, where)
        assert not torch.allclose(masked.attend(q, k, v, where, cache), plain, atol=1e-6)
        route = ContextRoute.of(cache)
        route.set("partner")
        route.freeze(False, {})
        torch.testing.assert_close(masked.attend(q, k, v, where, cache), plain, atol=1e-13, rtol=1e-12)


def test_the_share_of_one_context_token_follows_its_logit_bias():
    q, key = torch.ones(1, 1, 1, 1, **WIDE), torch.zeros(1, 1, 1, **WIDE)
    partner = torch.tensor([1.0, 0.0], **WIDE).logsumexp(0)
    for beta, mass in ((-5.0, 0.0018), (0.0, 0.2119), (2.0, 0.6653)):
        _, lse = context_part(q, key, key, torch.tensor([beta], **WIDE), None)
        # exact: 0.001810, 0.211942, 0.665241; the card rounds the last one up
        assert torch.sigmoid(lse - partner).item() == pytest.approx(mass, abs=1e-4)


def test_soft_form_adds_the_squared_distance():
    video, audio = ltx(4, 12)
    where, method = site("audio_to_video", video, audio), CrossModalContext(partition="soft", sigma=0.2)
    q, k, v = draw(1, 4, 2, 4), draw(1, 12, 2, 4, seed=1), draw(1, 12, 2, 4, seed=2)
    apart = torch.tensor(video.times, **WIDE)[:, None] - torch.tensor(audio.times, **WIDE)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2 - apart**2 / (2 * 0.2**2)
    expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
    torch.testing.assert_close(method.attend(q, k, v, where, PatchCache()), expected, atol=1e-5, rtol=1e-5)


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


def gradcheck_problem():
    """5 queries, 7 keys, some hidden by the window, 3 context tokens, 2 heads of 4."""
    video = video_layout([(i / 5, (i + 1) / 5) for i in range(5)])
    audio = audio_layout([(j / 7, (j + 1) / 7) for j in range(7)])
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=3, window=1.0)
    cache, _, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    assert not visible(method.rule(where.role, video, audio)).all()

    def run(q, k, v, keys, values, beta):
        return torch.func.functional_call(
            _Run(method, where, cache, own), {"own.keys": keys, "own.values": values, "own.beta": beta}, (q, k, v)
        )

    shapes = [(1, 5, 2, 4), (1, 7, 2, 4), (1, 7, 2, 4), (3, 2, 4), (3, 2, 4), (2,)]
    return run, [draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


class _Run(torch.nn.Module):
    def __init__(self, method, where, cache, own):
        super().__init__()
        self.method, self.where, self.cache, self.own = method, where, cache, own

    def forward(self, q, k, v):
        return self.method.attend(q, k, v, self.where, self.cache)


def test_gradients_of_partner_and_context_are_finite_differences():
    run, inputs = gradcheck_problem()
    assert torch.autograd.gradcheck(run, inputs)


def test_permuting_context_tokens_changes_nothing_but_the_order_of_their_gradients():
    run, inputs = gradcheck_problem()
    order = [2, 0, 1]
    swapped = [x.detach().clone()[order if index in (3, 4) else slice(None)] for index, x in enumerate(inputs)]
    swapped = [x.requires_grad_() for x in swapped]
    first, second = run(*inputs), run(*swapped)
    torch.testing.assert_close(first, second, atol=1e-15, rtol=1e-14)
    first.square().sum().backward()
    second.square().sum().backward()
    for index in (3, 4):
        torch.testing.assert_close(inputs[index].grad[order], swapped[index].grad, atol=1e-14, rtol=1e-13)


def test_context_tokens_in_the_source_space():
    video, audio = ltx(3, 10)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=2, space="source", beta=0.0)
    cache, module, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    assert {name: tuple(p.shape) for name, p in own.named_parameters()} == {"tokens": (2, 6), "beta": (2,)}
    q = draw(1, 3, 2, 4)
    keys, values = own.pairs(q)
    assert torch.equal(values.flatten(1), module.to_v(own.tokens))
    assert torch.equal(keys.flatten(1), module.norm_k(module.to_k(own.tokens)))
    out = method.attend(q, draw(1, 10, 2, 4, seed=1), draw(1, 10, 2, 4, seed=2), where, cache)
    out.sum().backward()
    assert own.tokens.grad.any() and own.beta.grad.any()


def test_context_tokens_in_the_source_space_keep_their_values_under_quantised_projections():
    """Quantised layers store whole numbers; tokens in that kind would be nothing but zeros."""

    class Quantised(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]
            self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
            self.in_features, self.out_features = inner.in_features, inner.out_features

        def forward(self, x):
            return self.inner[0](x)

    video, audio = ltx(3, 10)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=2, space="source", beta=0.0)
    cache, module, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x").double()
    right = own.pairs(draw(1, 3, 2, 4))
    module.to_k, module.to_v = Quantised(module.to_k), Quantised(module.to_v)
    for found, expected in zip(own.pairs(draw(1, 3, 2, 4)), right, strict=True):
        assert torch.equal(found, expected) and found.any()


def test_density_and_size():
    video, audio = ltx()
    a2v, v2a = (site(role, video, audio) for role in ("audio_to_video", "video_to_audio"))
    cache = PatchCache()
    assert round(CrossModalContext().density(a2v, cache).computed, 5) == 0.18998
    assert CrossModalContext().density(v2a, cache).computed == pytest.approx(1 / 16)
    assert CrossModalContext(partition="none").density(a2v, cache).dense
    method = CrossModalContext(tokens=8)
    installed_cache, _, _ = installed(method, site("audio_to_video", video, audio, heads=4))
    assert PatchWeights.of(installed_cache).count() == 2 * 8 * 8 + 4  # m * 2 * (h d) + h


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "space"}, "soft"),
        ({"frames": 2}, "odd"),
        ({"window": 0.5}, "window"),
        ({"tokens": -1}, "tokens"),
        ({"sigma": 0.0}, "sigma"),
        ({"weights": "x.safetensors"}, "tokens"),
        ({"space": "rows"}, "source"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        CrossModalContext(**settings)


def test_what_it_does_not_fit():
    video, audio = ltx(3, 10)
    plain = TokenLayout.of_grid(3, 1, 1)
    method = CrossModalContext()
    assert "this layer is self" in method.why_not(Site.of_layout(plain))
    assert "time of every token" in method.why_not(site("audio_to_video", plain, audio))
    instants = TokenLayout((3, 1, 1), (Segment("grid", 3),), times=(0.0, 0.1, 0.2))
    assert "start and end" in method.why_not(site("audio_to_video", instants, audio))
    assert CrossModalContext(partition="index").why_not(site("audio_to_video", plain, audio)) is None
    longer = video_layout([(0, 1), (1, 2)], extra=[(0, 1)])
    assert "appended" in CrossModalContext(partition="index").why_not(site("audio_to_video", longer, audio))
    assert "grid" in method.why_not(Site("x", 0, 1, "audio_to_video", 2, audio, audio))
    where, cache = site("audio_to_video", video, audio), PatchCache()
    ContextRoute.of(cache).set("t2v")
    ContextRoute.of(cache).freeze(False, {})
    q, k = draw(1, 3, 2, 4), draw(1, 10, 2, 4)
    with pytest.raises(UsageError, match="tokens=8"):
        method.attend(q, k, k, where, cache)
    with pytest.raises(UsageError, match="task"):
        ContextRoute.of(cache).set("t2x")
    with pytest.raises(UsageError, match="2 tasks"):
        route = ContextRoute()
        route.set(["t2v", "t2a"])
        route.freeze(False, {})
        route.rows(3)


def test_layouts_with_intervals_know_their_times():
    layout = audio_layout([(0.0, 0.5), (0.5, 1.5)])
    assert layout.times == (0.25, 1.0) and layout == audio_layout([(0.0, 0.5), (0.5, 1.5)])
    assert hash(layout) == hash(audio_layout([(0.0, 0.5), (0.5, 1.5)])) and "_hash" not in layout.__getstate__()
    with pytest.raises(UsageError, match="intervals"):
        TokenLayout((0, 0, 0), (Segment("audio", 3),), intervals=((0.0, 1.0),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close(dtype):
    """Weights are float32, tokens are not: same result within the rounding of the inputs."""
    video, audio = ltx(4, 16)
    where, method = site("audio_to_video", video, audio), CrossModalContext(tokens=3, beta=0.0)
    cache, _, _ = installed(method, where)
    own = PatchWeights.of(cache).at(method.name, "x")
    with torch.no_grad():
        own.values.copy_(draw(3, 2, 4, seed=5))
    own.float()
    q, k, v = (draw(2, n, 2, 4, seed=n).to(dtype) for n in (4, 16, 16))
    out = method.attend(q, k, v, where, cache)
    expected = method.attend(q.float(), k.float(), v.float(), where, cache)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
