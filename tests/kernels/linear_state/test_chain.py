"""The chain of steps: many small steps equal one large one, in value and gradient; states are read, split and kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import UsageError
from genkit.kernels import BlockPlan, TokenOrder
from genkit.kernels.linear_state import LinearState, linear_state
from genkit.kernels.linear_state.impl.chunked import excluded, steps


@pytest.fixture
def small_steps(monkeypatch):
    """Steps of a few tokens, so that short sequences take many, with ragged ends."""
    for name, value in {"SUM_CHUNK": 6, "TOKEN_CHUNK": 4, "CHANNEL_CHUNK": 3, "GROUPS": 2}.items():
        monkeypatch.setattr(steps, name, value)
    monkeypatch.setattr(excluded, "_MOST", 1)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaves(n=13, b=2, h=2, d=3, e=2, seed=0):
    found = {name: draw(seed + i, b, n, h, d).exp() for i, name in enumerate(("q", "k", "q_den", "k_den"))}
    found |= {"v": draw(seed + 5, b, n, h, e)}
    return found | {name: draw(seed + 6 + i, b, n, h).exp() for i, name in enumerate(("key_weight", "value_weight"))}


FORMS = {
    "all": {},
    "frames": {"mode": "frame", "group": 2},
    "long frames": {"mode": "chunk", "group": 7},
    "tokens": {"mode": "token"},
    "no denominator": {"mode": "token", "norm": "none"},
    "channels": {"norm": "channel_softmax"},
    "channels, frames": {"mode": "frame", "group": 2, "norm": "channel_softmax"},
    "channels, long frames": {"mode": "frame", "group": 7, "norm": "channel_softmax"},
    "channels, tokens": {"mode": "token", "norm": "channel_softmax"},
}


def given_to(form, seed=0, by_step=False):
    """Inputs and options of a form with everything that it takes."""
    options = dict(FORMS[form])
    inputs = leaves(seed=seed)
    softmax = options.get("norm") == "channel_softmax"
    if softmax or options.get("norm") == "none":
        inputs.pop("q_den")
    if softmax:
        inputs.pop("k_den")
    elif options:
        count = 13 if options["mode"] == "token" else -(-13 // options["group"])
        inputs["decay"] = -draw(seed + 9, *((2, count, 2) if by_step else (2,))).abs()
    inputs |= {"kv": draw(seed + 10, 2, 2, 3, 2), "z": draw(seed + 11, 2, 2, 3).exp()}
    return inputs, options, softmax


def call(inputs, options, softmax, backend="chunked"):
    rest = {name: x for name, x in inputs.items() if name not in ("kv", "z")}
    out, state = linear_state(
        **rest, **options, state=LinearState(inputs["kv"], inputs["z"], 4, softmax), backend=backend
    )
    return out, state.kv, state.z


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_differences(small_steps, form, by_step):
    inputs, options, softmax = given_to(form, by_step=by_step)
    if by_step and "decay" not in inputs:
        pytest.skip("no decay")
    names = list(inputs)
    tensors = [x.requires_grad_() for x in inputs.values()]
    torch.autograd.gradcheck(lambda *x: call(dict(zip(names, x, strict=True)), options, softmax), tensors)


@settings(max_examples=40, deadline=None)
@given(form=st.sampled_from(list(FORMS)), seed=st.integers(0, 10**6), which=st.sets(st.integers(0, 9), min_size=1))
def test_some_gradients_alone_equal_the_references(form, seed, which):
    sizes = {name: getattr(steps, name) for name in ("SUM_CHUNK", "TOKEN_CHUNK", "CHANNEL_CHUNK", "GROUPS")}
    try:
        steps.SUM_CHUNK, steps.TOKEN_CHUNK, steps.CHANNEL_CHUNK, steps.GROUPS = 5, 4, 3, 2
        found = []
        for backend in ("chunked", "reference"):
            inputs, options, softmax = given_to(form, seed)
            wanted = [x.requires_grad_() for at, x in enumerate(inputs.values()) if at in which]
            if not wanted:
                return
            results = call(inputs, options, softmax, backend)
            loss = sum((x * torch.sin(torch.arange(x.numel()).to(x)).view(x.shape)).sum() for x in results)
            found.append([*results, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)])
    finally:
        for name, value in sizes.items():
            setattr(steps, name, value)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def unselected(n=15, heads=2, rows=1):
    order = TokenOrder.from_grid((3, 5), (2, 2))
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, heads, order.blocks, order.blocks, generator=generator) < 0.5
    mask[..., 0] = True
    return BlockPlan.from_dense_blocks(mask, n, n, order=order)


@pytest.mark.parametrize(("heads", "rows"), [(1, 1), (2, 1), (2, 2)])
def test_gradients_of_unselected_blocks_by_differences_and_of_the_reference(small_steps, heads, rows):
    plan = unselected(heads=heads, rows=rows)
    inputs = leaves(15)
    names, tensors = list(inputs), [x.requires_grad_() for x in inputs.values()]

    def run(*x, backend="chunked"):
        return linear_state(**dict(zip(names, x, strict=True)), exclude=plan, backend=backend)[0]

    torch.autograd.gradcheck(run, tensors)
    torch.testing.assert_close(run(*tensors), run(*tensors, backend="reference"))


@pytest.mark.parametrize("form", FORMS)
def test_a_split_anywhere_equals_the_whole(small_steps, form):
    options = dict(FORMS[form])
    x = leaves(14)
    if options.get("norm"):
        x = {name: each for name, each in x.items() if name not in ("q_den", "k_den")}
    if "mode" not in options:
        states = []
        for span in (slice(0, 5), slice(5, 6), slice(6, 14)):
            states.append(linear_state(**{name: each[:, span] for name, each in x.items()}, **options)[1])
        total = states[2].merge(states[0]).merge(states[1])
        whole, end = linear_state(**x, **options)
        read = total.read(x["q"], x.get("q_den"))
        torch.testing.assert_close(read, whole)
    else:
        cut = 2 * options.get("group", 3) if options.get("group", 3) < 7 else 7
        if options.get("norm") != "channel_softmax":
            options["decay"] = torch.tensor([-0.1, -0.7], dtype=torch.float64)
        whole, end = linear_state(**x, **options)
        total, parts = None, []
        for span in (slice(0, cut), slice(cut, 14)):
            out, total = linear_state(**{name: each[:, span] for name, each in x.items()}, **options, state=total)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close((total.kv, total.z), (end.kv, end.z))
    assert total.count == end.count == 14


def test_fewer_queries_than_keys_read_the_same(small_steps):
    x = leaves()
    whole, state = linear_state(x["q"], x["k"], x["v"])
    for backend in ("chunked", "reference"):
        some, again = linear_state(x["q"][:, 3:8], x["k"], x["v"], backend=backend)
        torch.testing.assert_close(some, whole[:, 3:8])
        torch.testing.assert_close(again.kv, state.kv)
    torch.testing.assert_close(state.read(x["q"][:, 3:8]), whole[:, 3:8])
    torch.testing.assert_close(state.read(x["q"], norm="none"), linear_state(x["q"], x["k"], x["v"], norm="none")[0])
    with pytest.raises(UsageError, match=r"B=2, Nq, H=2, D=3"):
        state.read(x["q"][:1])
    with pytest.raises(UsageError, match="norm"):
        state.read(x["q"], norm="max")


def test_states_of_means_as_hybrid_forcing_keeps_them():
    q, k, v = (leaves()[name] for name in ("q", "k", "v"))
    state = linear_state(q, k, v)[1]
    km, kv = torch.zeros(2, 2, 3).double(), torch.zeros(2, 2, 3, 2).double()
    for n, span in ((0, slice(0, 4)), (4, slice(4, 8)), (8, slice(8, 13))):  # its running means over evicted chunks
        s = span.stop - span.start
        km = (k[:, span].sum(1) + n * km) / (n + s)
        kv = (torch.einsum("bnhd,bnhe->bhde", k[:, span], v[:, span]) + n * kv) / (n + s)
    mean_form = torch.einsum("bnhd,bhde->bnhe", q, kv) / (torch.einsum("bnhd,bhd->bnh", q, km)[..., None] + 1e-6)
    torch.testing.assert_close(LinearState.of_means(kv, km, 13).read(q, eps=13e-6), mean_form)
    torch.testing.assert_close(state.means(), (kv, km))
    with pytest.raises(UsageError, match="means already"):
        linear_state(q, k, v, norm="channel_softmax")[1].means()


@pytest.mark.parametrize("form", FORMS)
def test_hidden_keys_change_nothing_even_where_a_group_holds_no_others(small_steps, form):
    options = FORMS[form]
    x = {name: each for name, each in leaves().items() if name in ("q", "k", "v")}
    weight = torch.ones(2, 13, 2, dtype=torch.float64)
    weight[:, :7] = 0
    for backend in ("chunked", "reference"):
        out, state = linear_state(**x, **options, key_weight=weight, backend=backend)
        assert out.isfinite().all()
        other = x | {"k": x["k"] + 3 * (weight == 0)[..., None], "v": x["v"] - 5 * (weight == 0)[..., None]}
        again, _ = linear_state(**other, **options, key_weight=weight, backend=backend)
        torch.testing.assert_close(again, out, rtol=0, atol=0)


def test_kept_for_the_backward_pass_are_the_inputs_and_few_states():
    kept = []
    q, k, v = (draw(i, 1, 20000, 2, 16).float().exp().requires_grad_() for i in range(3))
    for options in ({}, {"mode": "frame", "group": 100}, {"mode": "token", "decay": torch.tensor([-0.1, -0.2])}):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            linear_state(q, k, v, **options)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
        own = {x.untyped_storage().data_ptr() for x in (q, k, v)}
        assert own <= set(storages)
        assert sum(size for at, size in storages.items() if at not in own) < 0.02 * sum(storages.values())


def test_low_precision_inputs_get_gradients_of_their_dtype_from_sums_in_float32():
    q, k, v = (draw(i, 1, 500, 1, 8).exp().half().requires_grad_() for i in range(3))
    out, state = linear_state(q, k, v)
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    assert out.dtype == torch.float16 and state.kv.dtype == torch.float32 and {g.dtype for g in grads} == {q.dtype}
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    right = torch.autograd.grad(linear_state(*wide)[0].square().sum(), wide)
    for one, two in zip(grads, right, strict=True):
        assert (one.double() - two).abs().max() < 4e-3 * two.abs().max()


def test_the_operator_inside_torch_compile():
    q, k, v = (draw(i, 1, 24, 1, 4).float().exp().requires_grad_() for i in range(3))

    def run(q, k, v):
        return linear_state(q, k, v, mode="frame", group=8)[0]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for one, two in zip(
        (compiled(q, k, v), *torch.autograd.grad(compiled(q, k, v).square().sum(), (q, k, v))),
        (run(q, k, v), *torch.autograd.grad(run(q, k, v).square().sum(), (q, k, v))),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
