"""Motif-Video's decoder reads its grid twice: methods hold in all four quarters, through the real class."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers import transformer_motif_video as motif

import genkit
from genkit.attention.dynamic import with_dense_rows
from genkit.attention.site import Site
from genkit.errors import UnsupportedError
from genkit.families.lookup import family_of
from genkit.layout import Segment, TokenLayout

sys.path.append(str(Path(__file__).parents[1] / "families"))

GRID, N = (3, 4, 5), 60
DECODER = "single_transformer_blocks.1.attn"
METHODS = {
    "neighborhood": genkit.Neighborhood(size=3),
    "radial": genkit.Radial(block_size=16, near="decay", sink=False, decay_factor=0.01, thin_below=128),
    "sliding_window": genkit.SlidingWindow(base=(2, 2), scale_factor=1),
}


@pytest.fixture
def case():
    """Own weights: they are trained here."""
    import zoo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = zoo.builders()["motif_video"][1]()
        for parameter in made.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    made.model.eval()
    return made


class Masked:
    """Softmax over the card's pattern, where Diffusers calls attention: in the decoder token i is at place i mod N;
    text and image tokens see all and are seen by all."""

    def __init__(self, pattern):
        self.pattern, self.lengths = pattern, []

    def __call__(self, q, k, v, attn_mask=None, **others):
        n, seen = q.shape[1], None
        if q.shape[1] == k.shape[1]:
            self.lengths.append(n)
            seen = torch.ones(n, n, dtype=torch.bool)
            if n == 2 * N:
                at = torch.arange(n) % N
                seen = self.pattern[at][:, at]
            else:
                seen[:N, :N] = self.pattern
        if attn_mask is not None:
            seen = attn_mask if seen is None else attn_mask & seen
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def run(case):
    return case.model(**case.args, return_dict=False)[0]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_it_is_the_cards_pattern_in_values_and_gradients(case, method, monkeypatch):
    parameters = list(case.model.parameters())
    before = run(case).detach()
    with genkit.patch(case.model, method) as patch:
        out = run(case)
        grads = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        report = patch.report()
    assert torch.equal(run(case), before) and not torch.allclose(out, before, atol=1e-4)
    pattern = method.mask(TokenLayout.of_grid(*GRID))
    density = pattern.double().mean().item()
    assert density < 0.95
    shares = {site.name: site.density.computed for site in report.sites if site.density is not None}
    assert shares[DECODER] == pytest.approx(density, abs=1e-9)
    masked = Masked(pattern)
    monkeypatch.setattr(motif, "dispatch_attention_fn", masked)
    right = run(case)
    assert masked.lengths == [N + 11, N + 11, 2 * N]
    torch.testing.assert_close(out, right, atol=2e-5, rtol=1e-4)
    for one, other in zip(grads, torch.autograd.grad(right.square().sum(), parameters, allow_unused=True), strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_all_pairs_are_the_model_itself(case):
    for method in (
        genkit.Neighborhood(size="all"),
        genkit.SlidingWindow(base=(9, 9), scale_factor=1),
        genkit.Radial(),
        genkit.BlockSelect(block=16, keep=1.0),
        genkit.MixtureOfBlock(keep=1.0),
    ):
        with genkit.patch(case.model, method) as patch:
            torch.testing.assert_close(case.run(), case.reference, atol=2e-5, rtol=1e-4)
            assert patch.report().ran and DECODER in patch.sites
        assert torch.equal(case.run(), case.reference)


@pytest.mark.parametrize(
    "method",
    [genkit.BlockSelect(block=8, keep=2), genkit.MixtureOfBlock(temporal=1, spatial=(2, 2), box=(1, 2, 2))],
    ids=["block_select", "mixture_of_block"],
)
def test_choices_hold_in_all_quarters(case, method):
    """The decoder's density is the budget's, with no dense half in it, and training goes through."""
    with genkit.patch(case.model, method) as patch:
        out = case.run()
        (site,) = [site for site in patch.report().sites if site.name == DECODER]
    assert not torch.allclose(out, case.reference, atol=1e-4) and torch.equal(case.run(), case.reference)
    assert site.density.computed < 0.5
    with genkit.patch(case.model, method):
        loss = run(case).square().sum()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in case.model.parameters())
    assert case.model.single_transformer_blocks[1].attn.to_k.weight.grad.abs().sum() > 0


def test_a_bias_of_distances_leaves_the_encoded_half_dense(case):
    method = genkit.Neighborhood(size=3, bias="distance:t=0.5:h=0.5:w=0.5")
    plain = genkit.Neighborhood(size=3)
    shares = []
    for each in (method, plain):
        with genkit.patch(case.model, each) as patch:
            case.run()
            shares += [site.density.computed for site in patch.report().sites if site.name == DECODER]
    assert shares[0] == pytest.approx((3 + shares[1]) / 4, abs=1e-9)


def test_the_record_tells_the_copy(case):
    streams = family_of(case.model).streams(case.model, case.args)
    layout = streams["decoder"]
    assert layout.copies == ("encoded",) and layout.grid == GRID and layout.length == 2 * N
    assert not streams["main"].copies and streams["main"].span("text") is not None


def test_a_mask_that_differs_between_queries_keeps_the_models_own(case, monkeypatch):
    """What is not of the grid would ask the model's own attention, densely: with copies the call is left alone."""
    own = motif.dispatch_attention_fn

    def masked(q, k, v, attn_mask=None, **others):
        if q.shape[1] == k.shape[1] == 2 * N:
            attn_mask = torch.ones(1, 1, 2 * N, 2 * N, dtype=torch.bool)
            attn_mask[..., N:, :7] = False
        return own(q, k, v, attn_mask=attn_mask, **others)

    monkeypatch.setattr(motif, "dispatch_attention_fn", masked)
    right = case.run()
    with genkit.patch(case.model, METHODS["neighborhood"], schedule=genkit.Schedule(layers="2:")) as patch:
        assert torch.equal(case.run(), right)
        assert any("several times" in reason for reason in patch.report().declined)


def test_methods_without_copies_do_not_serve_a_part_of_the_grids():
    layout = TokenLayout((1, 2, 2), (Segment("grid", 4), Segment("encoded", 4)), copies=("encoded",))
    x = torch.zeros(1, 8, 1, 8)
    with pytest.raises(UnsupportedError, match="2 grids of 4"):
        with_dense_rows(x[:, :4], x, x, x, Site.of_layout(layout))
