"""Every rule against attention written out, in float64."""

from __future__ import annotations

from math import log

import pytest
import torch
from conftest import explicit

from genkit.control import (
    Extra,
    Forbid,
    KeepPairs,
    ReadMaps,
    Refine,
    Replace,
    Reweight,
    ScaleKeys,
    Take,
    Tokens,
    Where,
    align,
    replacement,
)
from genkit.control.propagation import propagate
from genkit.errors import UsageError

CLOSE = {"rtol": 0, "atol": 1e-12}
SOURCE, TARGET, LAYOUT = 0, 1, 2


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


def columns(call, weights, rows=slice(None)):
    """(rows, H, picture queries, text) of explicit weights."""
    return weights[rows][:, :, call.picture, slice(*call.text)]


@pytest.mark.parametrize("role", ["self", "cross", "joint"])
def test_no_active_rule_declines(one_call, role):
    call = one_call(role)
    later = Where(start=0.5)
    rules = [Take("q", "source", "target", where=later), Reweight(tokens=(1,), weight=2.0, where=later)]
    assert call.run(*rules, step=4)[0] is None
    assert call.run(rules[1] if role != "self" else rules[0], step=5)[0] is not None


def test_queries_and_keys_of_another_row_give_its_map(one_call):
    call = one_call()
    out, _ = call.run(Take("qk", "source", "target"))
    plain, weights = explicit(call.q, call.k, call.v)
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", weights[SOURCE], call.v[TARGET]))
    close(out[[SOURCE, LAYOUT]], plain[[SOURCE, LAYOUT]])


def test_takes_read_what_the_model_made_and_not_each_other(one_call):
    call = one_call()
    out, _ = call.run(Take("q", "target", "layout"), Take("kv", "source", "layout"), Take("qkv", "source", "target"))
    close(out[LAYOUT], explicit(call.q[[TARGET]], call.k[[SOURCE]], call.v[[SOURCE]])[0][0])
    close(out[TARGET], out[SOURCE])


def test_blend_and_temperature_of_attenst(one_call):
    """The worked case of the card: weights 0.587479, 0.629560, 0.689010 for temperatures 1, 1.5, 2.25."""
    call = one_call(grid=(1, 1, 2), heads=1, width=2)
    q = torch.zeros_like(call.q)
    q[SOURCE, :, 0, 0] = q[TARGET, :, 0, 1] = 1
    k = torch.eye(2, dtype=torch.float64)[None, :, None].expand(3, -1, -1, -1)
    for temperature, weight in ((1.0, 0.587479), (1.5, 0.629560), (2.25, 0.689010)):
        out, _ = call.run(Take("q", "source", "target", blend=0.75, temperature=temperature), q=q, k=k, v=k)
        assert float(out[TARGET, 0, 0, 0]) == pytest.approx(weight, abs=1e-6)


def test_joint_attention_keeps_the_own_text(one_call):
    call = one_call("joint")
    k, v = call.k.clone(), call.v.clone()
    for x, own in ((k, call.k), (v, call.v)):
        x[TARGET, call.picture] = own[SOURCE, call.picture]
    close(call.run(Take("kv", "source", "target"))[0], explicit(call.q, k, v)[0])
    whole = call.run(Take("kv", "source", "target", tokens="all"))[0]
    close(whole[TARGET], explicit(call.q[[TARGET]], call.k[[SOURCE]], call.v[[SOURCE]])[0][0])


@pytest.mark.parametrize("role", ["self", "joint"])
def test_forbidden_pairs(one_call, role):
    call = one_call(role, text=5)
    left, right = torch.zeros(2, 4), torch.zeros(2, 4)
    left[:, 0], right[:, 3] = 1, 1
    out, _ = call.run(*Forbid.between([left, right], into="target"))
    length = call.site.layout.length
    flags = torch.zeros(2, length, dtype=torch.bool)
    flags[0, call.picture], flags[1, call.picture] = left.flatten().bool(), right.flatten().bool()
    mask = ~(flags[0][:, None] & flags[1] | flags[1][:, None] & flags[0])
    assert int((~mask).sum()) == 8
    close(out[TARGET], explicit(call.q, call.k, call.v, mask)[0][TARGET])
    close(out[[SOURCE, LAYOUT]], explicit(call.q, call.k, call.v)[0][[SOURCE, LAYOUT]])


def test_isolated_regions_have_no_influence_on_each_other(one_call):
    call = one_call()
    left, right = torch.zeros(2, 4), torch.zeros(2, 4)
    left[:, 0], right[:, 3] = 1, 1
    v = call.v.clone().requires_grad_()
    out, _ = call.run(*Forbid.between([left, right]), v=v)
    (gradient,) = torch.autograd.grad(out[TARGET, left.flatten().bool()].sum(), v)
    assert not gradient[TARGET, right.flatten().bool()].any() and gradient[TARGET, ~right.flatten().bool()].all()


def test_words_can_be_forbidden_to_a_region(one_call):
    call = one_call("joint")
    left = torch.zeros(2, 4)
    left[:, :2] = 1
    out, _ = call.run(Forbid(queries=left, keys=Tokens(text=(1, 2))))
    mask = torch.ones(call.site.layout.length, call.site.layout.length, dtype=torch.bool)
    rows = torch.zeros(len(mask), dtype=torch.bool)
    rows[call.picture] = left.flatten().bool()
    mask[rows, 1:3] = False
    close(out, explicit(call.q, call.k, call.v, mask)[0])


def test_every_query_keeps_a_key(one_call):
    with pytest.raises(UsageError, match="hide every key from some queries"):
        one_call().run(Forbid(queries=torch.ones(1, 1), keys=Tokens(everything=True)))


def test_painta_scales_scores_of_known_keys_for_unknown_queries(one_call):
    """The worked case of HD-Painter's card."""
    call = one_call(grid=(1, 2, 2), heads=1, width=1, roles=("only",))
    unknown = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    scores = torch.tensor([2.0, 1, 3, -1], dtype=torch.float64)
    k, q, v = (
        scores[None, :, None, None],
        torch.ones(1, 4, 1, 1, dtype=torch.float64),
        torch.eye(4).double()[None, :, None],
    )
    factor = torch.tensor([1.0, 1, 0, 0])
    out, _ = call.run(ScaleKeys(factor=factor, queries=unknown), q=q, k=k, v=v)
    close(out[0, 0, 0], torch.tensor([2.0, 1, 0, 0]).double().softmax(0))
    assert out[0, 0, 0].tolist() == pytest.approx([0.610296, 0.224515, 0.082595, 0.082595], abs=1e-6)
    close(out[0, 2, 0], scores.softmax(0))


@pytest.mark.parametrize("role", ["self", "joint"])
def test_key_factors_of_rows_and_of_a_function(one_call, role):
    call = one_call(role)
    factor = torch.rand(2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = []

    def of(seen):
        given.append(seen)
        return factor

    out, _ = call.run(ScaleKeys(factor=of, into=("source", "layout")))
    table = torch.ones(3, call.site.layout.length, dtype=torch.float64)
    table[[SOURCE, LAYOUT], call.picture] = factor
    close(out, explicit(call.q, call.k, call.v, factor=table[:, None, None])[0])
    assert given[0].rows is call.rows and given[0].step == 0
    close(call.run(ScaleKeys(factor=torch.ones(8)))[0], explicit(call.q, call.k, call.v)[0])


def test_extra_keys_of_a_moved_reference(one_call):
    call = one_call(roles=("reference", "scene"))
    asks = torch.zeros(2, 4)
    asks[:, 2:] = 1
    moved = torch.tensor([0, 0, 4, 5])
    rule = Extra(of="reference", into="scene", queries=asks, keys=lambda seen: moved, weight=2.0)
    out, _ = call.run(rule)
    k, v = (torch.cat([x[[1]], x[[0]][:, moved]], 1) for x in (call.k, call.v))
    mask = torch.ones(8, 12, dtype=torch.bool)
    mask[~asks.flatten().bool(), 8:] = False
    bias = torch.zeros(12, dtype=torch.float64)
    bias[8:] = log(2)
    close(out[1], explicit(call.q[[1]], k, v, mask, bias=bias)[0][0])
    close(out[0], explicit(call.q, call.k, call.v)[0][0])


def test_the_own_keys_twice_change_nothing(one_call):
    call = one_call("joint", roles=("only",))
    plain = explicit(call.q, call.k, call.v)[0]
    call_self = one_call("self", roles=("only",))
    close(call_self.run(Extra(of="only", into="only"))[0], explicit(call_self.q, call_self.k, call_self.v)[0])
    segment = Extra(of=lambda seen: (seen.k, seen.v), into="only")
    close(call.run(segment)[0][:, call.picture], plain[:, call.picture])


@pytest.mark.parametrize("role", ["cross", "joint"])
def test_refine_takes_the_columns_of_shared_words(one_call, role):
    call = one_call(role)
    alignment = align([1, 7, 8, 2], [1, 9, 7, 8, 2])
    out, _ = call.run(Refine(of="layout", into="target", alignment=alignment))
    _, weights = explicit(call.q, call.k, call.v)
    new = weights[TARGET].clone()
    start = call.text[0]
    for source, target in ((0, 0), (1, 2), (2, 3), (3, 4)):
        new[:, call.picture, start + target] = weights[LAYOUT][:, call.picture, start + source]
    if role == "joint":
        new = new / new.sum(-1, keepdim=True)
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", new, call.v[TARGET]))
    close(out[SOURCE], explicit(call.q, call.k, call.v)[0][SOURCE])


def test_refine_with_itself_changes_nothing(one_call):
    call = one_call("joint")
    out, _ = call.run(Refine(of="target", into="target", alignment=align([1, 2, 3], [1, 2, 3])))
    close(out, explicit(call.q, call.k, call.v)[0])


def test_replace_moves_maps_by_a_matrix(one_call):
    call = one_call("cross")
    matrix = replacement([[1]], [[1, 2]], 5)
    assert matrix.tolist()[1] == [0, 0.5, 0.5, 0, 0] and matrix.tolist()[2] == [0, 0, 0, 1, 0]
    out, _ = call.run(Replace(of="source", into="target", matrix=matrix))
    _, weights = explicit(call.q, call.k, call.v)
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", weights[SOURCE] @ matrix.double(), call.v[TARGET]))


@pytest.mark.parametrize("form", ["renormalised", "multiplicative", "additive"])
@pytest.mark.parametrize("role", ["cross", "joint"])
def test_reweight_inside_a_region(one_call, role, form):
    call = one_call(role)
    inside = torch.zeros(2, 4)
    inside[0] = 1
    out, _ = call.run(Reweight(tokens=(1, 3), weight=2.5, form=form, region=inside, into="target"))
    plain, weights = explicit(call.q, call.k, call.v)
    new = weights[TARGET].clone()
    rows = call.picture.start + inside.flatten().nonzero().flatten()
    for token in (1, 3):
        place = call.text[0] + token
        new[:, rows, place] = new[:, rows, place] + 2.5 if form == "additive" else new[:, rows, place] * 2.5
    if form == "renormalised":
        new = new / new.sum(-1, keepdim=True)
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", new, call.v[TARGET]))
    close(out[[SOURCE, LAYOUT]], plain[[SOURCE, LAYOUT]])


@pytest.mark.parametrize("role", ["cross", "joint"])
@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_words_are_weighed_in_maps_of_another_row_and_the_sum_is_kept(one_call, role, weight):
    call = one_call(role)
    pairs = align([1, 2, 3, 4, 5], [1, 2, 3, 9, 5])  # the fourth word is the target's own
    inside = torch.zeros(2, 4)
    inside[0] = 1
    rules = [Refine(of="source", into="target", alignment=pairs),
             Reweight(tokens=(1, 2), weight=weight, region=inside, into="target"),
             ReadMaps(name="m", of="target")]  # fmt: skip
    out, maps = call.run(*rules)
    plain, weights = explicit(call.q, call.k, call.v)
    new, text = weights[TARGET].clone(), slice(*call.text)
    shared = [call.text[0] + token for token in (0, 1, 2, 4)]
    rows = torch.zeros(new.shape[1], dtype=torch.bool)
    rows[call.picture] = True
    new[:, rows.nonzero(), shared] = weights[SOURCE][:, rows.nonzero(), shared]
    if role == "joint":  # one softmax over text and picture
        new = new / new.sum(-1, keepdim=True)
    wanted = new.sum(-1, keepdim=True)
    weighed = call.picture.start + inside.flatten().nonzero()
    new[:, weighed, [call.text[0] + 1, call.text[0] + 2]] *= weight
    new = new / new.sum(-1, keepdim=True) * wanted
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", new, call.v[TARGET]))
    close(out[[SOURCE, LAYOUT]], plain[[SOURCE, LAYOUT]])
    close(maps.latest("m").flatten(1, 3)[0], new[:, call.picture, text].mean(0))


def test_little_that_is_left_of_a_map_is_not_a_difference_of_large_outputs(one_call):
    """Nearly all weight is on the words that are hidden, in bfloat16."""
    call = one_call("cross")
    k = call.k.clone()
    k[:, 1] += 30 * call.q.mean(1) / call.q.mean(1).norm(dim=-1, keepdim=True)
    q = call.q.mean(1, keepdim=True).expand_as(call.q)
    q, k, v = (x.bfloat16() for x in (q, k, call.v))
    rules = [Refine(of="source", into="target", alignment=align([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])),
             Reweight(tokens=(1,), weight=0.0, into="target")]  # fmt: skip
    out, _ = call.run(*rules, q=q, k=k, v=v)
    _, weights = explicit(q.double(), k.double(), v.double())
    new = weights[SOURCE].clone()
    assert new[..., 1].min() > 0.999
    new[..., 1] = 0
    expected = torch.einsum("hnm,mhd->nhd", new / new.sum(-1, keepdim=True), v[TARGET].double())
    torch.testing.assert_close(out[TARGET].double(), expected, rtol=0.01, atol=0.01)


def test_motionclr_numbers(one_call):
    """Scores (2, 1, 0, -1): the three forms of the card."""
    call = one_call("cross", grid=(1, 1, 1), text=4, heads=1, width=2, roles=("only",))
    k = torch.tensor([[2.0, 0], [1, 0], [0, 0], [-1, 0]]).double()[None, :, None]
    q = torch.full((1, 1, 1, 2), 2**0.5, dtype=torch.float64)
    v = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 2]]).double()[None, :, None]

    def out(weight, form):
        found, _ = call.run(Reweight(tokens=(1,), weight=weight, form=form), q=q, k=k, v=v)
        return found.flatten().tolist()

    assert out(0.2, "additive") == pytest.approx([0.698999975, 0.588144343], abs=1e-9)
    assert out(2.0, "multiplicative") == pytest.approx([0.698999975, 0.625027161], abs=1e-9)
    weights = torch.tensor([0.520594, 0.383032, 0.070455, 0.025919]).double()
    assert out(2.0, "renormalised") == pytest.approx((weights @ v[0, :, 0]).tolist(), abs=2e-6)
    for form in ("renormalised", "multiplicative"):
        assert out(1.0, form) == pytest.approx([0.698999975, 0.388144343], abs=1e-9)
    hidden = explicit(q, k[:, [0, 2, 3]], v[:, [0, 2, 3]])[0].flatten().tolist()
    assert out(0.0, "renormalised") == pytest.approx(hidden, abs=1e-12)


@pytest.mark.parametrize("role", ["cross", "joint"])
@pytest.mark.parametrize("kind", ["weights", "logits"])
def test_maps_are_read_without_changing_the_call(one_call, role, kind):
    call = one_call(role)
    out, maps = call.run(ReadMaps(name="m", of=("target", "source"), tokens=(3, 1), kind=kind))
    assert out is None
    _, weights = explicit(call.q, call.k, call.v)
    if kind == "logits":
        weights = torch.einsum("bnhd,bmhd->bhnm", call.q, call.k) / 2
    expected = columns(call, weights, [SOURCE, TARGET])[..., [3, 1]].mean(1)
    close(maps.latest("m").flatten(1, 3), expected)
    assert maps.latest("m").shape == (2, 1, 2, 4, 2)


def test_maps_are_read_before_and_after_they_are_written(one_call):
    call = one_call("joint")
    refine = Refine(of="source", into="target", alignment=align([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]))
    _, maps = call.run(refine, ReadMaps(name="after", of="target"), ReadMaps(name="before", of="target", before=True))
    _, weights = explicit(call.q, call.k, call.v)
    close(maps.latest("before").flatten(1, 3)[0], columns(call, weights)[TARGET].mean(0))
    new = weights[TARGET].clone()[:, call.picture]
    new[..., slice(*call.text)] = columns(call, weights)[SOURCE]
    new = new / new.sum(-1, keepdim=True)
    close(maps.latest("after").flatten(1, 3)[0], new[..., slice(*call.text)].mean(0))


def test_gradients_reach_the_queries_on_demand(one_call):
    call = one_call("cross")
    q = call.q.clone().requires_grad_()
    for kind in ("weights", "logits"):
        _, maps = call.run(ReadMaps(name="m", of="target", tokens=(2,), kind=kind, grad=True), q=q)
        (gradient,) = torch.autograd.grad(maps.latest("m").square().sum(), q)
        assert gradient[TARGET].any() and not gradient[SOURCE].any()
        _, maps = call.run(ReadMaps(name="m", of="target", kind=kind), q=q)
        assert not maps.latest("m").requires_grad


def test_shaped_rows_and_written_maps_in_one_call(one_call):
    """Weights are those of the shaped attention: a region that cannot read a word, and the word weighed elsewhere."""
    call = one_call("joint")
    left = torch.zeros(2, 4)
    left[:, :2] = 1
    rules = [
        Forbid(queries=left, keys=Tokens(text=(1,)), into="target"),
        Reweight(tokens=(1, 2), weight=3.0, form="multiplicative", into="target"),
        ReadMaps(name="m", of="target", tokens=(1,)),
    ]
    out, maps = call.run(*rules)
    mask = torch.ones(call.site.layout.length, call.site.layout.length, dtype=torch.bool)
    rows = torch.zeros(len(mask), dtype=torch.bool)
    rows[call.picture] = left.flatten().bool()
    mask[rows, 1] = False
    _, weights = explicit(call.q, call.k, call.v, mask)
    new = weights[TARGET].clone()
    new[:, call.picture, 1:3] *= 3
    close(out[TARGET], torch.einsum("hnm,mhd->nhd", new, call.v[TARGET]))
    assert not maps.latest("m").flatten()[left.flatten().bool()].any()


def test_propagation_is_a_product_with_the_map(one_call):
    call = one_call()
    call.run(KeepPairs(name="k", of=("source", "target")))
    pairs = call.state.pairs["k"]
    weights = explicit(call.q, call.k, call.v)[1].mean(1)[:2]
    value = torch.rand(2, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = value[..., None]
    for _ in range(3):
        expected = 0.5 * expected + 0.5 * weights @ expected
    close(propagate(pairs, value, 3, 0.5, None), expected[..., 0])
    close(propagate(pairs, value.view(2, 1, 2, 4), 3, 0.5, (2, 4)), expected.view(2, 1, 2, 4))
    close(propagate(pairs, value, 4, 1.0, None), value)
    with pytest.raises(UsageError, match="2 rows of 1x2x4 tokens"):
        propagate(pairs, value[:1], 1, 0.0, None)


def test_hidden_text_keys_stay_hidden(one_call):
    import dataclasses

    call = one_call("cross")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    call.site = dataclasses.replace(call.site, key_mask=mask)
    out, maps = call.run(Reweight(tokens=(1,), weight=2.0, into="target"), ReadMaps(name="m"))
    bias = torch.zeros(3, 1, 1, 5).double()
    bias[TARGET, ..., 1] = log(2)
    expected, weights = explicit(call.q, call.k, call.v, mask[:, None, None], bias=bias)
    close(out, expected)
    close(maps.latest("m").flatten(1, 3), weights.mean(1))
