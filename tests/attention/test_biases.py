"""Biases by name: the card's numbers, every kind against brute force, factors against tables, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from attention_helpers import attention_over

from genkit.attention.bias_terms import TermRequest, TokenPlaces, block_means, operator_terms, split_tables
from genkit.attention.biases import Alibi, Distance, Frames, Learned, spec_of
from genkit.attention.score_scale import entropy_factor, log_factor, scale_of
from genkit.attention.scored import bias_rows
from genkit.errors import UsageError
from genkit.kernels import BlockPlan, LowRank, Table, block_sparse_attention
from genkit.layout import Segment, TokenLayout

GRID = (3, 4, 5)
LAYOUT = TokenLayout(GRID, (Segment("text", 3), Segment("grid", 60), Segment("reference", 2)))


def flat(n, d, o):
    """The card's f(n, d, o): sin(0.1 i + o) over the flat index."""
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + o).view(1, n, 1, d)


def attend(spec, grid, q, k, v, *, heads=1, pooled=False, weights=None):
    places = TokenPlaces.of_order(grid, torch.arange(math.prod(grid)))
    asked = TermRequest(heads, 0, heads, torch.device("cpu"), torch.float64, pooled)
    terms = operator_terms(spec_of(spec), places, asked, weights)
    plan = BlockPlan.dense(q.shape[1], k.shape[1], block_q=16)
    return block_sparse_attention(q, k, v, plan, scale=0.5, backend="reference", bias=terms)


def brute(term, grid, heads):
    """(heads, N, N) straight from the formulas of the docstrings, pair by pair."""
    place = [(a, b, c) for a in range(grid[0]) for b in range(grid[1]) for c in range(grid[2])]
    total = torch.zeros(heads, len(place), len(place), dtype=torch.float64)
    for h in range(heads):
        for i, x in enumerate(place):
            for j, y in enumerate(place):
                apart = [abs(a - b) for a, b in zip(x, y, strict=True)]
                if isinstance(term, Distance):
                    total[h, i, j] = -sum(
                        max(d - term.free(axis), 0) ** 2 / (2 * term.sigma(axis, grid[axis]) ** 2)
                        for axis, d in enumerate(apart)
                        if term.sigma(axis, grid[axis]) is not None
                    )
                elif isinstance(term, Alibi):
                    weight = [term.t, term.h, term.w]
                    weight = [1, 1, 1] if weight == [None] * 3 else [each or 0 for each in weight]
                    slope = term.slope * 2 ** (-8 * (h + 1) / heads)
                    total[h, i, j] = -slope * sum(f * d for f, d in zip(weight, apart, strict=True))
                else:
                    total[h, i, j] = -term.slope * max(apart[0] - term.free, 0)
    return total


TERMS = {
    "distance": Distance(t=1.5, h="50%"),
    "distance free": Distance(t=0.5, free_t=1.0, h=2, w=3, free_w=2.5),
    "alibi": Alibi(),
    "alibi axes": Alibi(t=2.0, w=0.5, slope=3.0),
    "frames": Frames(slope=0.7, free=1.0),
}


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
def test_kinds_are_their_formulas_and_other_tokens_are_exempt(term):
    spec = spec_of(term)
    right = torch.zeros(4, LAYOUT.length, LAYOUT.length, dtype=torch.float64)
    right[:, 3:63, 3:63] = brute(term, GRID, 4)
    torch.testing.assert_close(
        bias_rows(spec, LAYOUT, torch.arange(LAYOUT.length), 4).expand(4, -1, -1), right, atol=1e-12, rtol=0
    )
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, LAYOUT.length, 4, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    plan = BlockPlan.dense(LAYOUT.length, LAYOUT.length, block_q=16)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5 + right
    wanted = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    for pooled in (False, True):  # the exact table, and the exact factors
        asked = TermRequest(4, 0, 4, q.device, torch.float64, pooled)
        terms = operator_terms(spec, TokenPlaces.of_layout(LAYOUT), asked)
        assert isinstance(terms[0], LowRank if pooled else Table)
        out, lse = block_sparse_attention(q, k, v, plan, bias=terms)
        torch.testing.assert_close(out, wanted, atol=1e-11, rtol=0)
        torch.testing.assert_close(lse, scores.logsumexp(-1), atol=1e-11, rtol=0)


def test_the_squared_distance_of_a_grid_has_rank_five_at_most():
    spec = spec_of(Distance(t=1, h=2, w=2))
    tables = spec.tables(GRID, 1)
    full = bias_rows(spec, TokenLayout.of_grid(*GRID), torch.arange(60), 1)[0]
    assert int(torch.linalg.matrix_rank(full)) == 5 and float(full.abs().max()) == pytest.approx(5.125)
    exact = split_tables(tables, GRID, spec_of("alibi+svd:error=0").svd)
    assert exact.rank <= 9 and exact.error < 1e-12  # three a axis, which share the constants


def test_two_sided_alibi_gives_the_numbers_of_the_card():
    q, k, v = flat(8, 4, 0), flat(8, 4, 1), flat(8, 4, 2)
    out, _ = attend(Frames(slope=0.5), (8, 1, 1), q, k, v)
    assert out.sum().item() == pytest.approx(-1.222758895365, abs=1e-10)
    torch.testing.assert_close(
        out[0, 0, 0], torch.tensor([0.536247, 0.468655, 0.396380, 0.320145]).double(), atol=1e-6, rtol=0
    )
    again, _ = attend(Alibi(t=0.5 / 2**-8), (8, 1, 1), q, k, v)  # one head has the slope 2^-8
    torch.testing.assert_close(again, out)


def test_slow_singular_values_of_two_sided_alibi():
    """The card's N = 1024, slope m: largest errors .288 N m at rank 2, .053 N m at rank 8."""
    tables = spec_of(Frames(slope=1.0)).tables((1024, 1, 1), 1)
    for rank, error in ((2, 0.288), (8, 0.053)):
        found = split_tables(tables, (1024, 1, 1), spec_of(f"alibi+svd:rank={rank}").svd)
        assert found.rank == rank and found.full == 1024
        assert found.error / 1024 == pytest.approx(error, abs=6e-4)


def test_svd_keeps_its_promise_and_tells_the_true_error():
    torch.manual_seed(1)
    weights = {
        f"0.{axis}": torch.randn(3, 2 * reach + 1).double() for axis, reach in zip("thw", (2, 3, 4), strict=True)
    }
    spec = spec_of("table:t=2:h=3:w=4")
    tables = spec.tables(GRID, 3, weights)
    for text in ("svd:error=1", "svd:error=2", "svd:rank=5"):
        found = split_tables(tables, GRID, spec_of("alibi+" + text).svd)
        places = TokenPlaces.of_order(GRID, torch.arange(60))
        dense = [
            torch.einsum("hir,hjr->hij", f[:, places.at[:, axis]], g[:, places.at[:, axis]])
            for axis, f, g in found.factors
        ]
        difference = (sum(dense) - block_means(tables, places, 1)).abs().max().item()
        assert difference == pytest.approx(found.error, rel=1e-9)
        assert found.rank < found.full == 12
        assert found.error <= float(text[10:]) if "error" in text else found.rank == 5


def test_a_table_serves_grids_of_any_size():
    weights = {"0.t": torch.arange(7).double()[None]}  # distances -3 to 3
    for frames in (2, 4, 9):
        table = spec_of(Learned(t=3)).tables((frames, 1, 1), 1, weights)[0][0]
        for place, value in enumerate(table.tolist()):
            distance = place - (frames - 1)
            assert value == (distance + 3 if abs(distance) <= 3 else 0)


def test_identities():
    q, k, v = flat(8, 4, 0), flat(8, 4, 1), flat(8, 4, 2)
    plain = attention_over(q, k, v, torch.ones(8, 8, dtype=torch.bool), 0.5)
    for spec in ("table:t=3", "distance:t=1e6", "frames:slope=1e-12"):
        torch.testing.assert_close(attend(spec, (8, 1, 1), q, k, v)[0], plain, atol=1e-9, rtol=0)
    summed = bias_rows(spec_of("alibi:t=1+distance:h=2"), LAYOUT, torch.arange(65), 2)
    parts = [bias_rows(spec_of(text), LAYOUT, torch.arange(65), 2) for text in ("alibi:t=1", "distance:h=2")]
    torch.testing.assert_close(summed, parts[0] + parts[1])


@pytest.mark.parametrize(
    "text", ["table:t=2:h=3", "alibi:t=1:learned=true", "distance:t=2:w=3:learned=true", "frames:learned=true"]
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_of_the_weights_are_exact(text, backend):
    spec, heads = spec_of(text + "+alibi:h=1"), 2
    draw = torch.Generator().manual_seed(2)
    grid = (2, 3, 2)
    q, k, v = (torch.randn(1, 12, heads, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    first = spec.terms[0].weights(heads)
    values = [x + 0.1 * torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in first.values()]
    places = TokenPlaces.of_order(grid, torch.randperm(12, generator=draw))
    plan = BlockPlan.dense(12, 12, block_q=8)
    asked = TermRequest(heads, 0, heads, q.device, torch.float64)

    def run(*values):
        weights = {f"0.{name}": value for name, value in zip(first, values, strict=True)}
        terms = operator_terms(spec, places, asked, weights)
        out, lse = block_sparse_attention(q, k, v, plan, backend=backend, bias=terms)
        return out, lse

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in values])


def test_no_gradient_through_an_svd():
    spec = spec_of("table:t=2+svd:error=0.1")
    places = TokenPlaces.of_order((3, 1, 1), torch.arange(3))
    asked = TermRequest(1, 0, 1, torch.device("cpu"), torch.float32)
    weights = {"0.t": torch.ones(1, 5, requires_grad=True)}
    with pytest.raises(UsageError, match="train without"):
        operator_terms(spec, places, asked, weights)
    with torch.no_grad():
        assert isinstance(operator_terms(spec, places, asked, weights)[0], LowRank)


def test_text_forms_come_back():
    for text in (
        "distance:t=25%:h=2:free_t=1", "alibi", "alibi:t=1:slope=2:learned=true", "frames:slope=0.5",
        "table:t=4:h=8:w=8", "alibi:t=1+table:t=4+svd:error=0.05", "frames+svd:rank=4",
    ):  # fmt: skip
        assert str(spec_of(text)) == text and spec_of(spec_of(text)) == spec_of(text)
    assert str(spec_of([Alibi(t=1), "svd:rank=4"])) == "alibi:t=1+svd:rank=4"
    assert spec_of(" frames : slope = 1e+1 ").terms == (Frames(slope=10.0),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gauss", "allowed: distance, alibi, frames, table, svd"), ("alibi:x=1", "allowed: t, h, w, slope, learned"),
        ("distance", "needs a width"), ("distance:t=-1", "a number > 0"), ("distance:t=nan", "a number > 0"),
        ("distance:t=25%:learned=true", "in tokens"), ("distance:t=1:free_h=2", "no effect"),
        ("table", "needs a reach"), ("table:t=0", "from 1 to 4096"), ("table:t=1.5", "a whole number"),
        ("alibi:slope=0", "> 0"), ("alibi:t", "one t=value"), ("alibi:t=1:t=2", "one t=value"),
        ("frames:free=inf", ">= 0"), ("svd:rank=3", "svd alone"), ("alibi+svd", "needs one of"),
        ("alibi+svd:error=1:rank=2", "needs one of"), ("alibi+svd:rank=1+svd:rank=2", "twice"),
        ("distance:t=x%", "share of the axis"), ("", "text such as"), (3, "text such as"), ((), "text such as"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        spec_of(text)


def test_scales_of_the_card():
    for trained, present, value in (
        (4096, 16384, 1.0801), (1024, 4096, 1.0954), (4096, 1024, 0.9129), (32760, 98280, 1.0515),
        (32760, 131040, 1.0646),
    ):  # fmt: skip
        assert log_factor(trained, present) == pytest.approx(value, abs=5e-5)
        side = scale_of(f"log:{trained}").factor(TokenLayout.of_grid(1, 1, present, text=7))
        assert side == pytest.approx(value, abs=5e-5)
    for spread, value in ((2, 1.301), (3, 1.144)):
        assert math.sqrt(1 + 2 * math.log(4) / spread**2) == pytest.approx(value, abs=5e-4)
        assert entropy_factor(4096, 16384, spread) == pytest.approx(min(1.3, value), abs=5e-4)
    assert entropy_factor(4096, 16384, 1) == 1.3 and entropy_factor(4096, 4096, 2) == 1
    assert scale_of(None) is None and scale_of(2).factor(LAYOUT) == 2
    wide = TokenLayout.of_grid(7, 32, 32)
    assert scale_of("log:16x16").factor(wide) == pytest.approx(log_factor(256, 1024))
    assert scale_of("log:7x16x16").factor(wide) == pytest.approx(log_factor(7 * 256, 7 * 1024))


@pytest.mark.parametrize(
    "value", ["log", "log:1", "log:0x4", "log:2x2x2x2", "entropy:64", "entropy:64:0", "soft", 0, True, -1]
)
def test_scales_without_meaning_are_refused(value):
    with pytest.raises(UsageError, match="length_scale"):
        scale_of(value)
