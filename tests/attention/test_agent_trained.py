"""The trained form of agent attention against the formula with biases written out by torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import tokens
from torch.nn import functional as F

from genkit.attention.agent import Agent, Cells
from genkit.attention.agent.weights import AgentWeights, Positions, linear_weights
from genkit.attention.cache import PatchCache
from genkit.attention.registry import build
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import TokenLayout

IMAGE = TokenLayout.of_grid(1, 6, 8)
VIDEO = TokenLayout.of_grid(4, 6, 6)
JOINT = TokenLayout.of_grid(4, 6, 6, text=5, text_first=True)
SMALL = {"cell": (1, 2, 2), "lattice": (2, 3, 3), "lines": (3, 4, 5)}


class _Module(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_q = torch.nn.Linear(width, width, dtype=torch.float64)


def installed(method, heads=2, width=8, scale=0.0):
    """A cache with the weights of one site; noise of some scale instead of zeros."""
    cache = PatchCache()
    method.install(Place("site", "self", 0, 1, heads, _Module(heads * width)), cache)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in PatchWeights.of(cache).parameters():
            assert not parameter.any()
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return cache, PatchWeights.of(cache)


def run(method, layout, inputs, cache, **more):
    site = Site.of_layout(layout, heads=inputs[0].shape[2], **more)
    return method.attend(*inputs, site, cache)


def resized(part, lattice, grid, agents):
    """(H, n, N): one position bias by F.interpolate over tokens, then over agents. Cells must be of equal size."""
    heads, count = part.map.shape[:2]
    plane = F.interpolate(part.map, size=grid[1:], mode="bilinear", align_corners=False)[:, :, None]
    frames, rows, columns = (
        F.interpolate(table, size=grid[axis], mode="linear", align_corners=False)
        for axis, table in enumerate((part.frames, part.rows, part.columns))
    )
    whole = plane + frames[..., :, None, None] + rows[..., None, :, None] + columns[..., None, None, :]
    whole = whole.flatten(2).transpose(1, 2).unflatten(2, lattice)  # (H, N, *lattice)
    whole = F.interpolate(whole, size=agents, mode="trilinear", align_corners=False)
    return whole.flatten(2).transpose(1, 2)


def by_hand(method, layout, q, k, v, own, visible=None):
    """Section 2.1 of the card with biases and convolution: agents over grid keys, queries over agents and text."""
    scale, grid = q.shape[-1] ** -0.5, layout.grid
    agents = tuple(length // side for length, side in zip(grid, method.cell, strict=True))
    start, stop = layout.grid_span
    text = [i for i in range(layout.length) if not start <= i < stop]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    inside = q[:, :, start:stop]
    cells = Cells(grid, method.cell)
    if grid[0] == 1 and not text:
        picked = torch.stack([inside[:, :, cells.cell_of == cell].mean(2) for cell in range(len(cells.sizes))], 2)
    else:
        picked = inside[:, :, cells.centre]
    first, second = (resized(part, method.lattice, grid, agents) for part in (own.gather, own.read))
    carried = (scale * picked @ k[:, :, start:stop].transpose(-1, -2) + first).softmax(-1) @ v[:, :, start:stop]
    scores = scale**method.scale_power * inside @ picked.transpose(-1, -2) + second.transpose(1, 2)
    words = scale * inside @ k[:, :, text].transpose(-1, -2)
    if visible is not None:
        words = words.masked_fill(~visible[:, None, None, text], -torch.inf)
    out = torch.cat([scores, words], -1).softmax(-1) @ torch.cat([carried, v[:, :, text]], 2)
    values = v[:, :, start:stop].transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    local = F.conv3d(values, own.taps[:, None], padding=1, groups=values.shape[1])
    out = out + local.flatten(2).unflatten(1, (q.shape[1], -1)).transpose(2, 3) + method.shortcut * v[:, :, start:stop]
    hidden = None if visible is None else ~visible[:, None, None]
    dense = scale * q[:, :, text] @ k.transpose(-1, -2)
    dense = (dense if hidden is None else dense.masked_fill(hidden, -torch.inf)).softmax(-1) @ v
    return torch.cat([dense[:, :, :start], out, dense[:, :, start:]], 2).transpose(1, 2)


@pytest.mark.parametrize("layout", [IMAGE, VIDEO, JOINT], ids=["image", "video", "joint"])
@pytest.mark.parametrize("published", [False, True])
def test_untrained_is_the_training_free_form(layout, published):
    """All weights start at zero; equal within float rounding (the scores have more features, all zero)."""
    more = {"scale_power": 1.0, "shortcut": 0.0} if published else {}
    method = Agent(form="trained", **SMALL, **more)
    for dtype, near in ((torch.float32, 2e-6), (torch.float64, 1e-14)):
        inputs = [x.to(dtype) for x in tokens(layout)]
        cache, _ = installed(method)
        free = run(Agent(cell=method.cell, **more), layout, inputs, PatchCache())
        torch.testing.assert_close(run(method, layout, inputs, cache), free, atol=near, rtol=near)


@pytest.mark.parametrize("layout", [IMAGE, VIDEO, JOINT], ids=["image", "video", "joint"])
def test_value_and_gradients_equal_the_formula_in_float64(layout):
    method = Agent(form="trained", **SMALL)
    cache, weights = installed(method, scale=0.7)
    own = weights.at("agent", "site")
    visible = None
    if layout is JOINT:
        visible = torch.ones(2, layout.length, dtype=torch.bool)
        visible[0, 3:5] = False
    inputs = [x.double().requires_grad_() for x in tokens(layout)]
    wanted = [*inputs, *own.parameters()]
    out = run(method, layout, inputs, cache, key_mask=visible)
    right = by_hand(method, layout, *inputs, own, visible)
    torch.testing.assert_close(out, right, atol=1e-6, rtol=1e-6)
    assert (out - run(Agent(cell=method.cell), layout, inputs, cache, key_mask=visible)).abs().max() > 0.1
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = torch.autograd.grad(out, wanted, slope)
    for one, other in zip(got, torch.autograd.grad(right, wanted, slope), strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_finite_differences():
    layout = TokenLayout.of_grid(2, 2, 4, text=1)
    method = Agent(form="trained", cell=(1, 2, 2), lattice=(1, 1, 2), lines=(2, 1, 2))
    cache, weights = installed(method, heads=1, width=2, scale=0.5)
    inputs = [x.double().requires_grad_() for x in tokens(layout, heads=1, width=2, batch=1)]
    own = list(weights.parameters())

    def of(*values):
        return run(method, layout, values[:3], cache)

    assert torch.autograd.gradcheck(lambda *values: of(*values), (*inputs, *own))


def test_own_size_is_the_published_table():
    """A table as large as the grid is used as it is: agents of the lattice, an entry for every row and column."""
    method = Agent(form="trained", cell=(1, 2, 2), lattice=(1, 7, 7), lines=(1, 14, 14))
    grid = (1, 14, 14)
    cells = Cells(grid, method.cell)
    positions = Positions(grid, (cells.cell_of, cells.sizes), method.lattice, method.lines)
    assert torch.equal(positions.agents, torch.eye(49))
    lines = positions.tokens[:, 49:].view(14, 14, 29)
    for y in range(14):
        for x in range(14):
            assert lines[y, x].nonzero().flatten().tolist() == [0, 1 + y, 15 + x]
    torch.testing.assert_close(positions.tokens[:, :49].sum(1), torch.ones(196))


def test_places_between_stored_ones():
    """Ends are held, the middle is shared; the first frame alone in its cell lies at its own place."""
    weights = linear_weights(torch.tensor([0.0, 1.0, 2.0, 3.0]), 4, 2)
    assert weights.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert linear_weights(torch.tensor([0.0]), 1, 3).tolist() == [[0, 1, 0]]
    cells = Cells((5, 1, 1), (2, 1, 1))
    positions = Positions((5, 1, 1), (cells.cell_of, cells.sizes), (5, 1, 1), (5, 1, 1))
    expected = [[1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0.5, 0.5]]  # cells of frames 0, 1-2, 3-4
    torch.testing.assert_close(positions.agents, torch.tensor(expected))


def test_one_set_of_weights_serves_every_size():
    method = Agent(form="trained", **SMALL)
    cache, _ = installed(method, scale=0.5)
    for grid in ((1, 4, 4), (1, 9, 7), (3, 5, 4), (7, 8, 3)):
        layout = TokenLayout.of_grid(*grid)
        inputs = tokens(layout)
        out = run(method, layout, inputs, cache)
        free = run(Agent(cell=method.cell), layout, inputs, cache)
        assert out.isfinite().all() and not torch.allclose(out, free, atol=1e-2)


def test_grouped_key_heads():
    method = Agent(form="trained", **SMALL)
    cache, _ = installed(method, heads=4, scale=0.5)
    q, k, v = tokens(VIDEO, heads=4, key_heads=2)
    wide = [x.repeat_interleave(2, 2) for x in (k, v)]
    torch.testing.assert_close(run(method, VIDEO, (q, k, v), cache), run(method, VIDEO, (q, *wide), cache))


def test_scores_are_never_written_out(monkeypatch):
    """Both attentions get their biases as features: no attn_mask, and equal widths for kernels of linear memory."""
    method = Agent(form="trained", **SMALL)
    cache, _ = installed(method, scale=0.5)
    seen = []
    plain = F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **rest):
        seen.append((q.shape[-1], k.shape[-1], v.shape[-1], attn_mask))
        return plain(q, k, v, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    run(method, VIDEO, tokens(VIDEO), cache)
    rank = 3 * 3 + 3 + 4 + 5
    assert seen == [(32, 32, 32, None)] * 2 and 8 + rank <= 32  # a multiple of 8


def test_settings():
    made = build("agent", {"form": "trained", "lattice": "1x7x7", "lines": "1x14x14", "weights": "none"})
    assert made == Agent(form="trained", lattice=(1, 7, 7), lines=(1, 14, 14))
    assert "78 features" in made.details(IMAGE)
    for settings, words in (
        ({"form": "trained", "agents": "merge"}, "agents='cells'"),
        ({"weights": "a.safetensors"}, "form='trained'"),
        ({"form": "full"}, "free, trained"),
        ({"lattice": (0, 7, 7)}, "lattice"),
        ({"lines": (1, 7, 0)}, "lines"),
    ):
        with pytest.raises(UsageError, match=words):
            Agent(**settings)
    with pytest.raises(UnsupportedError, match="to_q"):
        AgentWeights(Place("site", "self", 0, 1, 2, torch.nn.Linear(2, 2)), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_as_close_as_the_training_free_form(dtype):
    """Biases enter in the dtype of q: the error against float64 is at most three times that of the form without."""
    method = Agent(form="trained", **SMALL)
    cache, weights = installed(method, scale=0.5)
    with torch.no_grad():
        weights.at("agent", "site").taps.zero_()  # outputs of the same size: rounding is compared, not their scale
    errors = []
    for one, store in ((method, cache), (Agent(cell=method.cell), PatchCache())):
        exact = run(one, JOINT, [x.to(dtype).double() for x in tokens(JOINT)], store)
        out = run(one, JOINT, [x.to(dtype) for x in tokens(JOINT)], store)
        assert out.dtype == dtype
        errors.append((out.double() - exact).abs().max().item())
    assert errors[0] <= 3 * errors[1]
