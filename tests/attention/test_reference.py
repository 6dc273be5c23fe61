"""Reference attention on plain tensors, in float64: directions, merging, the trained term, boxes, loss."""

from __future__ import annotations

import pytest
import torch
from attention_helpers import attention_over

from genkit.attention.batch_rows import spread
from genkit.attention.cache import PatchCache
from genkit.attention.reference import Reference
from genkit.attention.reference.masks import (
    blended_mask,
    box_mask,
    direction_density,
    grid_mask,
    reference_guidance,
    reweighted_loss,
    store_bytes,
)
from genkit.attention.reference.store import Recorded, References
from genkit.attention.site import Place, Site
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError
from genkit.layout import Segment, TokenLayout

JOINT = TokenLayout((1, 2, 3), (Segment("text", 3), Segment("grid", 6), Segment("reference", 4)))
GRID = TokenLayout.of_grid(2, 2, 3)
WIDE = {"dtype": torch.float64}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **WIDE)


def qkv(layout, batch=2, heads=2, width=4, seed=0):
    return [draw(batch, layout.length, heads, width, seed=seed + part) for part in range(3)]


def joint_softmax(q, k, v, extra_k, extra_v, weight):
    """softmax over own and extra keys together; ``weight`` (B, Nq, Nextra) multiplies the extra ones' exponentials."""
    keys, values = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, keys) * q.shape[-1] ** -0.5
    own = torch.zeros(*weight.shape[:2], k.shape[1], **WIDE)
    logits = logits + torch.cat([own, weight.log()], -1)[:, None]
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)


def stored(cache, site, *, strength=1.0, tokens=5, batch=1, seed=50):
    """A recorded reference of some tokens, put in place without a model."""
    entry = Recorded(strength, None)
    entry.pairs[site.name] = (draw(batch, tokens, 2, 4, seed=seed), draw(batch, tokens, 2, 4, seed=seed + 1))
    References.of(cache).entries[f"r{seed}"] = entry
    return entry.pairs[site.name]


class Projections(torch.nn.Module):
    """What reference attention asks of an attention module."""

    def __init__(self, width=8):
        super().__init__()
        for name in ("to_q", "to_k", "to_v"):
            setattr(self, name, torch.nn.Linear(width, width, **WIDE))


def installed(method, site):
    cache = PatchCache()
    module = Projections()
    hooks = list(method.install(Place(site.name, site.role, 0, 1, 2, module), cache))
    return cache, module, hooks


def test_direction_mask_is_two_calls():
    method, site, cache = Reference(origin="sequence"), Site.of_layout(JOINT), PatchCache()
    q, k, v = qkv(JOINT)
    out = method.attend(q, k, v, site, cache)
    torch.testing.assert_close(out, attention_over(q, k, v, method.mask(JOINT)), atol=1e-15, rtol=1e-15)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, 3:9] += draw(2, 6, 2, 4, seed=9)
    other = method.attend(*changed, site, cache)
    assert torch.equal(out[:, 9:], other[:, 9:]) and not torch.equal(out[:, :9], other[:, :9])


def test_a_recorded_reference_reads_itself_only():
    """The recording pass: grid tokens see grid tokens only, text keeps its attention."""
    layout = TokenLayout.of_grid(1, 2, 3, text=3, text_first=True)
    method, site, cache = Reference(), Site.of_layout(layout), PatchCache()
    references = References.of(cache)
    references.recording = Recorded(1.0, None)
    q, k, v = qkv(layout)
    visible = torch.ones(9, 9, dtype=torch.bool)
    visible[3:, :3] = False
    torch.testing.assert_close(
        method.attend(q, k, v, site, cache), attention_over(q, k, v, visible), atol=1e-15, rtol=1e-15
    )
    keys, values = references.recording.pairs[site.name]
    assert torch.equal(keys, k[:, 3:]) and torch.equal(values, v[:, 3:])


def test_density_is_the_share_of_scores_when_the_reference_reads_itself_only():
    assert direction_density(3, 6, 4) == pytest.approx(0.786982, abs=5e-7)
    assert int((~Reference(origin="sequence").mask(JOINT)).sum()) == 36 and JOINT.length**2 == 169
    density = Reference(origin="sequence").density(Site.of_layout(JOINT), PatchCache())
    assert density.computed == pytest.approx(133 / 169)
    worked = {(512, 4096, 4096): (0.7509, 0.5294), (226, 17550, 1350): (0.9344, 0.9294), (0, 32760, 32760): (0.75, 0.5)}
    for (text, image, reference), (full, cached) in worked.items():
        assert round(direction_density(text, image, reference), 4) == full
        assert round(direction_density(text, image, reference, cached=True), 4) == cached
    assert round(store_bytes(1560, 1536, 30) / 1e6, 1) == 287.5


def test_the_zero_projection_adds_exactly_nothing_and_learns():
    method, site = Reference(form="residual", rank=2), Site.of_layout(GRID)
    cache, module, hooks = installed(method, site)
    references, weights = References.of(cache), PatchWeights.of(cache).at("reference", site.name)
    q, _, _ = qkv(GRID, batch=1)
    hidden = draw(1, 5, 8, seed=20)
    references.recording = entry = Recorded(1.0, None)
    keys, values = module.to_k(hidden).view(1, 5, 2, 4), module.to_v(hidden).view(1, 5, 2, 4)
    entry.pairs[site.name] = (keys, values)
    references.recording, references.entries["r"] = None, entry
    term = method.attend(q, q, q, site, cache)
    assert method.adds and torch.equal(term, torch.zeros_like(term))
    term.backward(draw(*term.shape, seed=21))
    grads = {name: parameter.grad for name, parameter in weights.named_parameters()}
    assert grads["out.weight"].abs().min() > 0
    for name in ("k", "v"):
        assert torch.equal(grads[f"changes.{name}.up"], torch.zeros_like(grads[f"changes.{name}.up"]))
    assert grads["changes.q.up"] is None  # the query of a reference serves its own pass only
    for hook in hooks:
        hook.remove()
    assert not module.to_k._forward_hooks


def test_low_rank_changes_act_on_the_reference_side_only():
    method, site = Reference(form="residual", rank=2), Site.of_layout(GRID)
    cache, module, _ = installed(method, site)
    references, weights = References.of(cache), PatchWeights.of(cache).at("reference", site.name)
    torch.nn.init.ones_(weights.changes["k"].up)
    hidden = draw(1, 5, 8, seed=20)
    plain = module.to_k(hidden)
    references.recording = Recorded(1.0, None)
    change = hidden @ weights.changes["k"].down.T @ weights.changes["k"].up.T
    torch.testing.assert_close(module.to_k(hidden), plain + change)
    references.recording = None
    assert torch.equal(module.to_k(hidden), plain) and weights.changes["k"].down.shape == (2, 8)


def test_gradients_of_the_residual_form():
    """gradcheck of q, the stored keys and values, and the projection, in float64."""
    method, site = Reference(form="residual", rank=0), Site.of_layout(GRID)
    cache, _, _ = installed(method, site)
    references, weights = References.of(cache), PatchWeights.of(cache).at("reference", site.name)
    torch.nn.init.normal_(weights.out.weight, generator=torch.Generator().manual_seed(3))
    references.set_boxes(box_mask([(0, 0, 0.5, 1)], 2, 4))
    entry = Recorded(0.7, None)
    references.entries["r"] = entry

    def term(q, k, v, weight):
        entry.pairs[site.name] = (k, v)
        return torch.func.functional_call(_Term(method, site, cache, weights), {"weights.out.weight": weight}, (q,))

    inputs = [draw(2, 12, 2, 4), draw(1, 5, 2, 4, seed=1), draw(1, 5, 2, 4, seed=2), weights.out.weight.detach()]
    assert torch.autograd.gradcheck(term, [x.clone().requires_grad_() for x in inputs])


class _Term(torch.nn.Module):
    def __init__(self, method, site, cache, weights):
        super().__init__()
        self.method, self.site, self.cache, self.weights = method, site, cache, weights

    def forward(self, q):
        return self.method.attend(q, q, q, self.site, self.cache)


def test_merging_is_the_joint_softmax():
    site, cache = Site.of_layout(GRID), PatchCache()
    first = stored(cache, site, strength=0.5)
    second = stored(cache, site, strength=2.0, tokens=3, seed=60)
    q, k, v = qkv(GRID)
    extra = [torch.cat(pair, 1).expand(2, -1, -1, -1) for pair in zip(first, second, strict=True)]
    weight = torch.cat([torch.full((5,), 0.5, **WIDE), torch.full((3,), 2.0, **WIDE)]).expand(2, 12, 8)
    out = Reference(strength=3.0).attend(q, k, v, site, cache)
    torch.testing.assert_close(out, joint_softmax(q, k, v, *extra, 3 * weight), atol=2e-15, rtol=1e-14)
    # the formula of the card: o = (1 - w) o1 + w o2, w = sigmoid(lse2 - lse1 + log strength)
    logits = [torch.einsum("bqhd,bkhd->bhqk", q, keys) / 2 for keys in (k, extra[0][:, :5])]
    lses = [x.logsumexp(-1) for x in logits]
    w = torch.sigmoid(lses[1] - lses[0] + torch.tensor(0.5, **WIDE).log()).transpose(1, 2)[..., None]
    own, other = (
        torch.einsum("bhqk,bkhd->bqhd", x.softmax(-1), y) for x, y in zip(logits, (v, extra[1][:, :5]), strict=True)
    )
    References.of(cache).forget("r60")
    single = Reference().attend(q, k, v, site, cache)
    torch.testing.assert_close(single, (1 - w) * own + w * other, atol=2e-15, rtol=1e-14)


def test_appended_references_leave_text_queries_alone_and_respect_hidden_keys():
    layout = TokenLayout.of_grid(1, 2, 3, text=3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 7:] = False
    site, cache = Site.of_layout(layout, heads=2, key_mask=mask), PatchCache()
    keys, values = (x.expand(2, -1, -1, -1) for x in stored(cache, site))
    q, k, v = qkv(layout)
    out = Reference().attend(q, k, v, site, cache)
    visible = mask[:, None, None].expand(2, 1, 9, 9)
    torch.testing.assert_close(out[:, 6:], attention_over(q, k, v, visible)[:, 6:], atol=1e-13, rtol=1e-12)
    for row in range(2):
        part = [x[row : row + 1, mask[row]] for x in (k, v)]
        expected = joint_softmax(
            q[row : row + 1, :6], *part, keys[:1], values[:1], torch.ones(1, 6, 5, **WIDE)
        )  # fmt: skip
        torch.testing.assert_close(out[row : row + 1, :6], expected, atol=1e-13, rtol=1e-12)


def test_rows_of_a_batch_read_the_first_of_their_group():
    site, cache = Site.of_layout(GRID), PatchCache()
    q, k, v = qkv(GRID, batch=6)
    out = Reference(origin="rows", group=3).attend(q, k, v, site, cache)
    plain = attention_over(q, k, v, torch.ones(12, 12, dtype=torch.bool))
    for row in range(6):
        first = row - row % 3
        if row == first:
            torch.testing.assert_close(out[row], plain[row], atol=2e-15, rtol=1e-14)
            continue
        pick = [x[row : row + 1] for x in (q, k, v)] + [x[first : first + 1] for x in (k, v)]
        expected = joint_softmax(*pick, torch.ones(1, 12, 12, **WIDE))
        torch.testing.assert_close(out[row : row + 1], expected, atol=2e-15, rtol=1e-14)
    with pytest.raises(UsageError, match="groups of 4"):
        Reference(origin="rows", group=4).attend(q, k, v, site, cache)


def test_the_blended_mask_weighs_the_term_inside_and_outside_the_boxes():
    mask = box_mask([(0.25, 0.25, 0.75, 0.75)], 4, 4)
    assert int(mask.sum()) == 4 and mask[0, 1:3, 1:3].eq(1).all()
    values = blended_mask(mask, 0.75)
    assert sorted(values.unique().tolist()) == [0.75, 1.0] and values.mean() == 0.8125
    method = Reference(form="residual", rank=0, outside=0.75)
    site = Site.of_layout(TokenLayout.of_grid(1, 4, 4))
    cache, _, _ = installed(method, site)
    torch.nn.init.eye_(PatchWeights.of(cache).at("reference", site.name).out.weight)
    stored(cache, site)
    q = draw(2, 16, 2, 4)
    free = method.attend(q, q, q, site, cache)
    References.of(cache).set_boxes(mask)
    blend = method.attend(q, q, q, site, cache)
    torch.testing.assert_close(blend, free * values.flatten()[None, :, None, None].double(), atol=0, rtol=1e-12)
    whole = Reference(form="residual", rank=0, outside=1.0).attend(q, q, q, site, cache)
    assert torch.equal(whole, free)
    inside = Reference(form="residual", rank=0, outside=0.0).attend(q, q, q, site, cache)
    untouched = inside[:, mask.flatten() == 0]
    assert torch.equal(untouched, torch.zeros_like(untouched)) and inside.abs().sum() > 0


def test_boxes_weigh_appended_references_per_query():
    site, cache = Site.of_layout(GRID), PatchCache()
    keys, values = (x.expand(2, -1, -1, -1) for x in stored(cache, site))
    q, k, v = qkv(GRID)
    mask = torch.zeros(2, 2, 3)
    mask[1, 0, 1] = 1  # the second frame only
    References.of(cache).set_boxes(mask)
    share = blended_mask(mask.flatten(), 0.25).double().expand(2, 12)
    out = Reference(outside=0.25).attend(q, k, v, site, cache)
    expected = joint_softmax(q, k, v, keys, values, share[:, :, None].expand(2, 12, 5))
    torch.testing.assert_close(out, expected, atol=2e-15, rtol=1e-14)
    only_inside = Reference(outside=0.0).attend(q, k, v, site, cache)
    plain = attention_over(q, k, v, torch.ones(12, 12, dtype=torch.bool))
    outside = mask.flatten() == 0
    torch.testing.assert_close(only_inside[:, outside], plain[:, outside], atol=2e-15, rtol=1e-14)


def test_the_loss_weighs_squared_errors_inside_the_boxes():
    mask = box_mask([(0.25, 0.25, 0.75, 0.75)], 4, 4)
    prediction, target = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    assert reweighted_loss(prediction, target, mask) == 0.3125
    assert reweighted_loss(prediction, target, mask, inside=1.0) == torch.nn.functional.mse_loss(prediction, target)
    with pytest.raises(UsageError, match="broadcast"):
        reweighted_loss(prediction, target, torch.ones(5, 4))
    with pytest.raises(UsageError, match="must agree"):
        reweighted_loss(prediction, target[:1], mask)


def test_masks_are_averaged_by_area_and_by_latent_frame():
    mask = torch.zeros(9, 4, 4)
    mask[0], mask[3:5] = 1, 1
    pooled = grid_mask(mask, (3, 2, 2)).view(3, 4)
    assert pooled[:, 0].tolist() == [1.0, 0.5, 0.0]  # first alone, then four and four
    assert grid_mask(mask[:6], (3, 1, 1)).tolist() == [[0.5, 0.5, 0.5]]
    assert grid_mask(mask[:1], (3, 1, 1)).tolist() == [[1.0, 1.0, 1.0]]
    half = box_mask([(0, 0, 0.125, 1), None], 4, 4)
    assert grid_mask(half, (2, 1, 2)).tolist() == [[0.25, 0.0, 0.0, 0.0]]
    with pytest.raises(UsageError, match="frames of the mask"):
        grid_mask(mask[:5], (4, 2, 2))
    with pytest.raises(UsageError, match="box"):
        box_mask([(0.5, 0, 0.2, 1)], 4, 4)
    with pytest.raises(UsageError, match="mask"):
        References().set_boxes(torch.ones(4, 4))


def test_boxes_are_followed_by_every_row_or_by_its_own():
    site, query = Site.of_layout(GRID), draw(2, 12, 2, 4)
    rows = [[(0, 0, 0.5, 1)] * 2, [(0.25, 0.5, 1, 1)] * 2]
    by_hand, told = References(), References()
    for boxes in (rows, rows[:1]):
        told.follow(boxes, 32, 48)
        by_hand.set_boxes(torch.stack([box_mask(row, 4, 6) for row in boxes]))
        shares = [references.share(site, 0.25, 2, query) for references in (told, by_hand)]
        assert torch.equal(*shares) and (shares[0] < 1).any() and (shares[0] == 1).any()
    told.follow(None, 32, 48)
    assert told.share(site, 0.25, 2, query) is None


def test_without_a_reference_nothing_happens():
    site, cache = Site.of_layout(GRID), PatchCache()
    q, k, v = qkv(GRID)
    assert Reference().attend(q, k, v, site, cache) is None
    stored(cache, site)
    references = References.of(cache)
    with references.paused():
        assert Reference().attend(q, k, v, site, cache) is None
    references.set_strength("r50", 0)
    assert Reference().attend(q, k, v, site, cache) is None
    references.set_strength("r50", 1)
    assert Reference().attend(q, k, v, site, cache) is not None
    assert Reference(strength=0).attend(q, k, v, site, cache) is None
    references.forget()
    assert Reference().attend(q, k, v, site, cache) is None
    assert Reference(origin="sequence").attend(q, k, v, site, cache) is None
    with pytest.raises(UsageError, match="reference"):
        references.forget("r50")


def test_a_foreground_mask_keeps_only_its_tokens():
    layout = TokenLayout.of_grid(1, 2, 4)
    k, v = draw(1, 8, 2, 4), draw(1, 8, 2, 4, seed=1)
    entry = Recorded(1.0, box_mask([(0, 0, 0.5, 1)], 8, 8))
    entry.keep(Site.of_layout(layout), k, v)
    assert torch.equal(entry.pairs["site"][0], k[:, [0, 1, 4, 5]])
    tiny = Recorded(1.0, box_mask([(0, 0, 0.05, 0.05)], 20, 20))
    tiny.keep(Site.of_layout(layout), k, v)
    assert torch.equal(tiny.pairs["site"][1], v[:, :1])  # a subject smaller than a token still counts


def test_rows_of_a_reference_serve_the_halves_of_guidance():
    site, cache = Site.of_layout(GRID), PatchCache()
    stored(cache, site, batch=2)
    q, k, v = qkv(GRID, batch=4)
    out = Reference().attend(q, k, v, site, cache)
    swapped = [x[[2, 3, 0, 1]] for x in (q, k, v)]
    assert torch.equal(Reference().attend(*swapped, site, cache), out[[2, 3, 0, 1]])
    with pytest.raises(UsageError, match="divisor"):
        Reference().attend(*[x[:3] for x in (q, k, v)], site, cache)


@pytest.mark.parametrize("form", ["append", "residual"])
def test_parts_of_the_batch_read_as_much_as_they_are_told(form):
    method = Reference(form=form, **({"rank": 0} if form == "residual" else {}))
    site = Site.of_layout(GRID)
    cache = PatchCache()
    if form == "residual":
        cache, _, _ = installed(method, site)
        torch.nn.init.eye_(PatchWeights.of(cache).at("reference", site.name).out.weight)
    stored(cache, site, batch=2)
    references = References.of(cache)
    q, k, v = qkv(GRID, batch=4)
    full = method.attend(q, k, v, site, cache)
    references.set_parts((0, 1))
    half = method.attend(q, k, v, site, cache)
    assert torch.equal(half[2:], full[2:])
    without = torch.zeros_like(full) if form == "residual" else attention_over(
        q, k, v, torch.ones(12, 12, dtype=torch.bool)
    )  # fmt: skip
    torch.testing.assert_close(half[:2], without[:2], atol=2e-15, rtol=1e-14)
    mask = torch.zeros(2, 2, 3)
    mask[0] = 1
    references.set_boxes(mask)
    boxed = method.attend(q, k, v, site, cache)
    assert torch.equal(boxed[:2], half[:2]) and torch.equal(boxed[2:, :6], full[2:, :6])
    assert not torch.equal(boxed[2:, 6:], full[2:, 6:])
    references.set_boxes(None)
    references.set_parts(())
    assert torch.equal(method.attend(q, k, v, site, cache), full)
    references.set_parts((1, 1, 0))
    with pytest.raises(UsageError, match="4 rows has no 3 equal parts"):
        method.attend(q, k, v, site, cache)
    with pytest.raises(UsageError, match="numbers >= 0"):
        references.set_parts((0, -1))


def test_guidance_over_text_and_reference():
    e0, ec, etc = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    torch.testing.assert_close(reference_guidance(e0, ec, etc, 1.0, 1.0), etc)
    torch.testing.assert_close(reference_guidance(e0, e0, etc, 5.0, 3.0), e0 + 5 * (etc - e0))
    torch.testing.assert_close(reference_guidance(e0, ec, ec, 5.0), e0 + 1.5 * (ec - e0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "both"}, "append"),
        ({"form": "residual", "origin": "rows"}, "recorded"),
        ({"form": "append", "weights": "x.safetensors"}, "residual"),
        ({"rank": -1}, "rank"),
        ({"group": 1}, "group"),
        ({"outside": 1.5}, "outside"),
        ({"strength": -1.0}, "strength"),
    ],
)
def test_wrong_settings_are_refused_with_words(settings, words):
    with pytest.raises(UsageError, match=words):
        Reference(**settings)


def test_what_it_does_not_fit():
    text = TokenLayout.sequence(5)
    cross = Site("a", 0, 1, "cross", 2, GRID, text)
    assert "self, joint" in Reference().why_not(cross)
    assert "grid" in Reference().why_not(Site.of_layout(text, role="self"))
    with pytest.raises(UnsupportedError, match="to_q"):
        list(Reference(form="residual").install(Place("a", "self", 0, 1, 2, torch.nn.Linear(2, 2)), PatchCache()))
    with pytest.raises(UnsupportedError, match="hides nothing"):
        Reference().mask(GRID)
    assert Reference(form="residual").recommended(20, 40) == {"layers": ":16"} and not Reference().recommended(20, 40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["append", "residual"])
def test_low_precision_stays_close(dtype, form):
    """Stored in one dtype, read in another, weights in a third: the result has the dtype of the queries."""
    method, site = Reference(form=form, **({"rank": 0} if form == "residual" else {})), Site.of_layout(GRID)
    cache, _, _ = installed(method, site)
    if form == "residual":
        torch.nn.init.eye_(PatchWeights.of(cache).at("reference", site.name).out.weight)
    stored(cache, site)
    References.of(cache).set_boxes(box_mask([(0, 0, 0.5, 1)], 4, 4))
    q, k, v = (x.to(dtype) for x in qkv(GRID))
    out = method.attend(q, k, v, site, cache)
    expected = method.attend(q.double(), k.double(), v.double(), site, cache)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=3e-2, rtol=3e-2)


def test_rows_of_a_recording_are_repeated_for_the_halves_of_guidance():
    rows = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(spread(rows, 4, "a reference"), torch.cat([rows, rows]))
    assert torch.equal(spread(rows[:1], 3, "a reference"), rows[:1].expand(3, 3))
    assert spread(rows, 2, "a reference") is rows
    with pytest.raises(UsageError, match="a reference of 2 rows cannot serve a batch of 3"):
        spread(rows, 3, "a reference")


def test_no_density_without_a_reference_in_the_sequence():
    site = Site.of_layout(TokenLayout.of_grid(1, 4, 4))
    assert Reference(origin="sequence").density(site, PatchCache()) is None
    assert Reference().density(Site.of_layout(JOINT), PatchCache()) is None
