"""What a look at a run tells, against whole softmax maps computed from the same queries and keys by loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.attention.cache import PatchCache
from genkit.attention.site import Site
from genkit.errors import UnsupportedError, UsageError
from genkit.evaluation.inspection import Look, strip
from genkit.evaluation.inspection.look import looked_at, sites_of
from genkit.evaluation.inspection.picture import draw, site_table
from genkit.evaluation.inspection.strip import Energy, Sample, keys_that_hold
from genkit.evaluation.inspection.taker import Taker
from genkit.layout import TokenLayout

METHODS = [genkit.Neighborhood(size=(1, 3, 3)), genkit.BlockSelect(keep=0.4, block=8), genkit.Pyramid(block=8)]


def run(pipe, steps=2, **more):
    options = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 16, "guidance_scale": 2.0, **more}
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=steps, generator=generator, output_type="latent", **options)[0]


@pytest.fixture(scope="module")
def wan(tiny_wan):
    pipe = genkit.load(str(tiny_wan))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def seen(wan):
    """The result for every query of every step, and the same calls as they were."""
    calls = []
    with Look(wan, METHODS, queries=10**6) as look:
        run(wan)
    with genkit.patch(wan, Taker(lambda q, k, v, site: calls.append((q.clone(), k.clone(), v.clone(), site)))):
        run(wan)
    return look.result(), calls


def by_hand(q, k, site):
    """Distances and sparsity of one call, pair by pair in float64."""
    layout = site.layout
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1).mean(0).numpy()
    (start, stop), (t, h, w) = layout.grid_span, layout.grid
    places = [(a, b, c) for a in range(t) for b in range(h) for c in range(w)]
    far = round(math.hypot(h - 1, w - 1)) + 1
    heads = weights.shape[0]
    temporal, spatial, both = np.zeros((heads, t)), np.zeros((heads, far)), np.zeros((t, far))
    keys = {0.9: np.zeros(heads), 0.95: np.zeros(heads)}
    for i, (a, b, c) in enumerate(places):
        row = weights[:, start + i]
        for j, (x, y, z) in enumerate(places):
            apart, beside = abs(a - x), round(math.hypot(b - y, c - z))
            temporal[:, apart] += row[:, start + j]
            spatial[:, beside] += row[:, start + j]
            both[apart, beside] += row[:, start + j].mean()
        for head in range(heads):
            largest = np.sort(row[head])[::-1]
            for share in keys:
                keys[share][head] += next(n for n in range(1, 10**6) if largest[:n].sum() >= share) / len(largest)
    count = len(places)
    text = 1 - weights[:, start:stop, start:stop].sum(-1).mean(1)
    return temporal / count, spatial / count, both / count, {s: v / count for s, v in keys.items()}, text, weights


def test_energy_and_sparsity_are_those_of_the_whole_map(seen):
    result, calls = seen
    assert [site.name for site in result.sites] == ["blocks.0.attn1", "blocks.1.attn1"]
    assert len(calls) == 4 and {site.branch for *_, site in calls} == {"cond"}
    for q, k, _, site in calls[:3]:
        look = next(each for each in result.sites if each.name == site.name)
        step = next(each for each in look.steps if each.step == site.step)
        temporal, spatial, _, keys, text, _ = by_hand(q, k, site)
        assert step.queries == site.layout.grid_length
        np.testing.assert_allclose(step.temporal, temporal, atol=1e-6)
        np.testing.assert_allclose(step.spatial, spatial, atol=1e-6)
        for share, found in keys.items():
            np.testing.assert_allclose(step.keys[share], found, atol=2e-3)
        np.testing.assert_allclose(step.temporal.sum(1), 1 - text, atol=1e-6)


def test_distances_together_and_an_even_map(seen):
    result, calls = seen
    look = result.sites[0]
    found = [by_hand(q, k, site)[2] for q, k, _, site in calls if site.name == look.name]
    np.testing.assert_allclose(look.both, np.mean(found, 0), atol=1e-6)
    site = calls[0][3]
    flat = torch.zeros_like(calls[0][0])
    even = by_hand(flat, flat, site)
    np.testing.assert_allclose(look.even_temporal, even[0][0], atol=1e-9)
    np.testing.assert_allclose(look.even_spatial, even[1][0], atol=1e-9)


def test_recall_and_error_of_methods(seen):
    result, calls = seen
    for q, k, v, site in calls:
        look = next(each for each in result.sites if each.name == site.name)
        step = next(each for each in look.steps if each.step == site.step)
        weights = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()).mul(q.shape[-1] ** -0.5).softmax(-1)
        dense = torch.einsum("bhqk,bkhd->bqhd", weights, v.double())
        for method in METHODS:
            found = step.methods[method.describe()]
            out = method.attend(q, k, v, site, PatchCache())
            assert found.error == pytest.approx(float((out - dense).norm() / dense.norm()), abs=1e-5)
            head = (out - dense).square().sum((0, 1, 3)).sqrt() / dense.square().sum((0, 1, 3)).sqrt()
            np.testing.assert_allclose(found.head_error, head.numpy(), atol=1e-5)
            if method.name == "pyramid":
                assert found.recall is None
                continue
            pairs = method.pairs(q, k, site, PatchCache()) if method.by_data else method.mask(site.layout)[None, None]
            np.testing.assert_allclose(found.recall, (weights * pairs).sum(-1).mean((0, 2)).numpy(), atol=1e-6)
            assert 0 < found.computed < 1 and found.computed <= found.executed + 1e-9
    first = METHODS[0].describe()
    every = [each.methods[first] for site in result.sites for each in site.steps]
    assert result.recall(first) == pytest.approx(np.mean([each.recall.mean() for each in every]))
    assert result.error(first) == pytest.approx(np.mean([each.error for each in every]))


@pytest.mark.parametrize(
    "method",
    [
        genkit.Neighborhood(size=(3, 3, 3)),
        genkit.ShiftedGroups(group=2, sink="none"),
        genkit.Shards(block=8),
        genkit.MixtureOfHeads(),
        genkit.BlockSelect(keep=0.3, block=16, score="kmeans"),
        genkit.MixtureOfBlock(keep=2),
        genkit.Biased(bias="distance:t=0.5:h=0.5:w=0.5", block=8),
        genkit.SparseLinear(sparse="block_select keep=0.3 block=16"),
        genkit.LayerRouter(sparse="block_select keep=0.3 block=16"),
    ],
    ids=lambda method: method.describe(),
)
@pytest.mark.parametrize("layout", [TokenLayout.of_grid(4, 4, 5), TokenLayout.of_grid(4, 4, 5, text=7)])
def test_rows_of_pairs_are_rows_of_what_attention_reads(method, layout):
    """A value that marks one key reaches exactly the queries whose rows say that they read it."""
    site = Site.of_layout(layout, heads=4)
    if method.why_not(site):
        pytest.skip(method.why_not(site))
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, layout.length, 4, 16, generator=draw) for _ in range(2))
    rows = torch.tensor([0, 3, 41, layout.length - 1])
    part = getattr(method, "part", method)
    read = method.pair_rows(q, k, site, PatchCache(), rows).expand(2, 4, -1, -1)
    for key in (0, 17, 60, layout.length - 1):
        v = torch.zeros_like(k)
        v[:, key] = 1
        out = part.attend(q, k, v, site, PatchCache())[:, rows].amax(-1).transpose(1, 2)
        assert torch.equal(out > 0, read[..., key])


def test_cut_strips_and_samples_agree(monkeypatch):
    """The same numbers however the strip is cut; a sample is near the whole; hidden keys count for nothing."""
    layout = TokenLayout.of_grid(3, 4, 4, text=6, text_first=True)
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, layout.length, 4, 8, generator=draw) for _ in range(3))
    mask = torch.ones(2, layout.length, dtype=torch.bool)
    mask[:, 3:6] = False
    site = Site.of_layout(layout, heads=4).at(0, 2, None, mask)

    def energy(queries):
        found, sampled = Energy(), Sample.of(q, k, v, site, queries)
        for part, weights in sampled.pieces():
            assert weights.numel() <= max(strip.MOST, 2 * 4 * layout.length)
            assert not weights[..., 3:6].any()
            found.add(sampled, part, weights)
        return found

    whole = energy(10**6)
    assert whole.queries == 2 * 48
    monkeypatch.setattr(strip, "MOST", 5 * 2 * 4 * layout.length)
    cut = energy(10**6)
    for one, other in ((whole.temporal, cut.temporal), (whole.spatial, cut.spatial), (whole.outside, cut.outside)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.keys[0.9], cut.keys[0.9])
    total = whole.temporal.sum(1) + whole.outside["text"]
    torch.testing.assert_close(total / whole.queries, torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    some = energy(24)
    assert some.queries == 48
    assert (some.temporal / some.queries - whole.temporal / whole.queries).abs().max() < 0.1


def test_keys_that_hold_counts_the_fewest():
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05]).view(1, 1, 1, 4)
    assert keys_that_hold(weights, shares=(0.5, 0.51, 0.9, 0.95, 1.0)) == {
        0.5: 0.25, 0.51: 0.5, 0.9: 0.75, 0.95: 0.75, 1.0: 1.0
    }  # fmt: skip
    even = torch.full((1, 1, 1, 10), 0.1)
    assert float(keys_that_hold(even, shares=(0.9,))[0.9]) == pytest.approx(0.9)


def test_outputs_are_the_same_and_several_runs_are_averaged(wan):
    plain = run(wan)
    with Look(wan, [METHODS[0]], steps="1:", sites=["*.1.attn1"], queries=8) as look:
        assert torch.equal(run(wan), plain)
        first = look.result()
        run(wan)
    both = look.result()
    assert [site.name for site in both.sites] == ["blocks.1.attn1"]
    assert [each.step for each in both.sites[0].steps] == [1]
    assert (first.sites[0].steps[0].queries, both.sites[0].steps[0].queries) == (8, 16)
    np.testing.assert_allclose(first.sites[0].steps[0].temporal, both.sites[0].steps[0].temporal)
    assert torch.equal(run(wan), plain) and not genkit.patches(wan)


def test_joint_attention_tells_the_text(tiny_flux):
    flux = genkit.load(str(tiny_flux))
    flux.set_progress_bar_config(disable=True)
    with Look(flux, queries=10**6) as look:
        flux("a red circle", num_inference_steps=1, height=16, width=16, max_sequence_length=16, output_type="latent")
    result = look.result()
    assert {site.role for site in result.sites} == {"joint"}
    step = result.sites[0].steps[0]
    total = step.temporal.sum(1) + sum(step.outside.values())
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert set(step.outside) == {"text"} and step.outside["text"].min() > 0


def test_halves_of_guidance_that_come_together_are_told_apart():
    layout = TokenLayout.of_grid(1, 2, 2)
    shown = []
    taker = Taker(lambda q, k, v, site: shown.append((q, site)))
    q = torch.arange(4.0)[:, None, None, None].expand(4, 4, 1, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    site = Site.of_layout(layout)
    taker.attend(q, q, q, site.at(0, 1, "cond_uncond", mask, 0, True), PatchCache())
    taker.attend(q, q, q, site.at(0, 1, "uncond"), PatchCache())
    taker.attend(q, q, q, site.at(0, 1, "cond"), PatchCache())
    assert [each.shape[0] for each, _ in shown] == [2, 4]
    assert torch.equal(shown[0][0], q[2:]) and shown[0][1].key_mask.shape == (2, 4) and not shown[0][1].both


def test_picture_and_numbers(seen, tmp_path):
    result, _ = seen
    picture = draw(result, "a title", ["a note"])
    assert isinstance(picture, Image.Image) and picture.width > 1000 and picture.height > 1000
    columns, rows = site_table(result)
    assert len(rows) == 2 and all(len(row) == len(columns) for row in rows)
    found = json.loads(json.dumps(result.to_dict()))
    assert set(found["methods"]) == {method.describe() for method in METHODS}
    step = found["sites"][1]["steps"][0]
    assert step["mass by frames apart"] == pytest.approx(result.sites[1].steps[0].temporal.mean(0).tolist(), rel=1e-4)


def test_what_is_refused(wan):
    with pytest.raises(UsageError, match=r"site: got 'blocks.7.attn1', allowed: blocks.0.attn1, blocks.1.attn1"):
        Look(wan, sites=["blocks.7.attn1"])
    for queries in (0, True, 1.5):
        with pytest.raises(UsageError, match="queries"):
            Look(wan, queries=queries)
    with pytest.raises(UnsupportedError, match="has weights for every layer"):
        Look(wan, [genkit.Agent()])
    with pytest.raises(UnsupportedError, match="broadway fits no attention"):
        Look(wan, [genkit.Broadway()])
    with Look(wan) as look, pytest.raises(UnsupportedError, match="no attention call was seen"):
        look.result()
    with Look(wan, steps="5:") as look, pytest.raises(UsageError, match="there are 2 steps"):
        run(wan)
    assert not genkit.patches(wan)


def test_a_model_without_a_grid_is_told(wan):
    class Bare:
        components = {"text_encoder": wan.text_encoder}

    with pytest.raises(UnsupportedError, match="no denoiser"):
        sites_of(Bare())


def test_steps_that_are_looked_at():
    assert looked_at(None, 5) == {0, 1, 2, 3, 4}
    assert looked_at(None, 50) == {0, 7, 14, 21, 28, 35, 42, 49}
