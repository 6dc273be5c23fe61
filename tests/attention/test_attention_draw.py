"""The picture of what a method sees: the map agrees with mask or choice, colours are told, a file is written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from genkit.attention import registry
from genkit.attention.agent import Agent
from genkit.attention.cache import PatchCache
from genkit.attention.cross_modal_context import CrossModalContext
from genkit.attention.draw import HIDDEN, QUERY, SEEN, TEXT_SEEN, draw, pair_map
from genkit.attention.mixture_of_block import MixtureOfBlock
from genkit.attention.neighborhood import Neighborhood
from genkit.attention.radial import Radial
from genkit.attention.reference import Reference
from genkit.attention.site import Site
from genkit.attention.views import fields, view_of
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

SMALL = TokenLayout.of_grid(3, 8, 8)
JOINT = TokenLayout.of_grid(3, 8, 8, text=8)
CHOICES = [MixtureOfBlock(keep=2), MixtureOfBlock(select="threshold", scope="head"), Agent(cell=(1, 2, 2))]


def test_the_map_is_the_mean_of_the_mask():
    for method in (Neighborhood(size=3), Radial(block_size=8, near="decay", sink=False)):
        mask = method.mask(JOINT).double().numpy()
        view = view_of(method, JOINT)
        assert np.array_equal(pair_map(view, JOINT, JOINT.length), mask) and not view.note
        coarse = mask.reshape(20, 10, 20, 10).mean((1, 3))
        assert np.allclose(pair_map(view, JOINT, 20), coarse)


@pytest.mark.parametrize("layout", [SMALL, JOINT], ids=["grid", "with text"])
@pytest.mark.parametrize("method", CHOICES, ids=lambda method: method.describe())
def test_what_is_drawn_of_a_choice_is_what_attention_reads(method, layout):
    """Values that mark one key show what really reaches a query: nothing of unseen keys, something of seen ones."""
    site = dataclasses.replace(Site.of_layout(layout, heads=4), layer=1, layers=2)
    q, k = fields(layout, 3, 0), fields(layout, 3, 1)
    seen = method.seen(q, k, site, PatchCache())
    assert seen.shape == (layout.length, layout.length) and 0 <= seen.min() and seen.max() <= 1
    plain = dataclasses.replace(method, shortcut=0.0) if isinstance(method, Agent) else method
    for key in (0, 70, layout.length - 1):
        value = torch.zeros_like(k)
        value[:, key] = 1
        reached = plain.attend(q, k, value, site, PatchCache())[0].mean((1, 2))
        assert torch.equal(reached > 0, seen[:, key] > 0)
        if method.weighs:
            assert torch.corrcoef(torch.stack([reached, seen[:, key]]))[0, 1] > 0.3


def test_pictures_of_a_choice_follow_seed_and_layer_and_say_so():
    method = MixtureOfBlock(spatial=(2, 2), keep=3)
    first, again, other = (view_of(method, SMALL, seed=seed, layer=1) for seed in (0, 0, 1))
    rows = torch.arange(SMALL.length)
    assert torch.equal(first.rows(rows), again.rows(rows)) and not torch.equal(first.rows(rows), other.rows(rows))
    assert not torch.equal(first.rows(rows), view_of(method, SMALL, layer=2).rows(rows))
    assert "drawn at random" in first.note and "seed 1" in other.note
    assert first.density.computed == pytest.approx(first.rows(rows).mean().item(), abs=1e-6)


@pytest.mark.parametrize("layout", [TokenLayout.of_grid(5, 8, 8, text=6), TokenLayout.of_grid(1, 12, 16)])
def test_the_picture_is_written_and_shows_the_queries(tmp_path, layout):
    path = tmp_path / "mask.png"
    picture, density = draw(Neighborhood(size=3), layout, path)
    saved = Image.open(path)
    assert saved.size == picture.size and saved.format == "PNG"
    assert (np.asarray(saved.convert("RGB")) == QUERY).all(-1).sum() > 200
    assert 0 < density.computed <= density.executed


@pytest.mark.parametrize(
    "method", [Neighborhood(size=3), MixtureOfBlock(), Agent(cell=(1, 2, 2))], ids=lambda m: m.name
)
def test_the_legend_shows_every_colour_of_the_picture(method):
    for layout, colours in ((SMALL, (QUERY, SEEN, HIDDEN)), (JOINT, (QUERY, SEEN, TEXT_SEEN, HIDDEN))):
        line = np.asarray(draw(method, layout)[0])[158:182]
        assert all((line == colour).all(-1).sum() >= 18 for colour in colours)
        assert (line == TEXT_SEEN).all(-1).any() == (layout is JOINT)


def test_every_method_is_drawn_or_says_what_to_do_instead():
    sequence = TokenLayout((1, 8, 8), (Segment("grid", 64), Segment("text", 4), Segment("reference", 16)))
    for name in registry.names():
        method = registry.build(name)
        try:
            text = 0 if "self" in method.roles else 8
            assert draw(method, TokenLayout.of_grid(4, 12, 12, text=text))[0].width > 1000
        except UnsupportedError as refusal:
            assert "genkit inspect reference --grid" in str(refusal) or "genkit generate" in str(refusal)
            told = ("broadway", "motion_boxes", "reference", "shared_cross_attention", "cross_modal_context")
            assert name in told
    assert draw(Reference(origin="sequence"), sequence)[1].computed < 1
    with pytest.raises(UnsupportedError, match="add text tokens"):
        draw(registry.build("shared_cross_attention"), SMALL)
    with pytest.raises(UnsupportedError, match="larger cells"):
        draw(Agent(cell=(1, 1, 1)), SMALL)
    with pytest.raises(UnsupportedError, match="docs/methods/cross_modal_context.md"):
        draw(CrossModalContext(), SMALL)


def test_long_videos_are_drawn_from_samples():
    picture, density = draw(Radial(), TokenLayout.of_grid(11, 24, 32, text=100, text_first=True))
    assert picture.width > 1000 and density.executed < 0.6
    with pytest.raises(UsageError, match="at most 6144 for mixture_of_block"):
        draw(MixtureOfBlock(), TokenLayout.of_grid(11, 24, 32))


def test_a_sequence_without_a_grid_is_refused():
    with pytest.raises(UsageError, match="needs a token grid"):
        draw(Radial(), TokenLayout.sequence(7))
