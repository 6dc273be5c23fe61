"""Linear attention with a state: worked numbers of published forms, equality of both backends, states that add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import UsageError
from genkit.kernels import BlockPlan, TokenOrder
from genkit.kernels.linear_state import LinearState, backends, linear_state, why_not


def wave(n, d, offset):
    return torch.sin(0.1 * torch.arange(n * d, dtype=torch.float64) + offset).reshape(1, n, 1, d)


def elu1(x):
    return torch.nn.functional.elu(x) + 1


def rotate(x):
    """Rotary embedding of pairs (0, 1), (2, 3) with frequencies 1 and 0.01 at positions 0..N-1."""
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.01], dtype=x.dtype)
    c, s = angle.cos()[None, :, None], angle.sin()[None, :, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


Q, K, V = wave(8, 4, 0), wave(8, 4, 1), wave(8, 4, 2)
FRAME = {"mode": "frame", "group": 4}
ROT_Q, ROT_K = rotate(Q), rotate(K)

# name: (arguments, options, sum of the output, row, its first numbers)
WORKED = {
    "elu": ((elu1(Q), elu1(K), V), {"eps": 0.0}, -0.150577293521, 0, (0.104726, 0.033577, -0.037908, -0.109014)),
    "relu": ((Q.relu(), K.relu(), V), {"eps": 1e-15}, 8.794746267883, 0, (0.435530, 0.357165, 0.275232, 0.190549)),
    "softmax": (
        (Q.softmax(-1), K.softmax(-1), V), {"eps": 1e-5}, -7.940912850540, 0,
        (-0.157101, -0.217014, -0.274758, -0.329757)
    ),
    "sana": (
        (rotate(Q.relu()), rotate(K.relu()), V), {"eps": 1e-15, "q_den": Q.relu(), "k_den": K.relu()},
        6.219743686295, 0,
        (0.470635, 0.403388, 0.332109, 0.257513),
    ),
    "frame": (
        (elu1(Q), elu1(K), V), FRAME | {"eps": 0.0}, 5.655689916636, 0, (0.482259, 0.403281, 0.320274, 0.234067)
    ),
    "frame_decay": (
        (elu1(Q), elu1(K), V), FRAME | {"eps": 0.0, "decay": torch.tensor([0.9], dtype=torch.float64).log()},
        5.230465690667, 4,
        (0.074125, 0.003565, -0.067031, -0.136958),
    ),
    "lightning": (
        (Q, K, V), {"mode": "token", "norm": "none", "decay": torch.tensor([-0.1], dtype=torch.float64)},
        76.776606922303, 0,
        (0.508198, 0.482440, 0.451861, 0.416768),
    ),
    "lightnet_causal": (
        (torch.nn.functional.silu(Q), K, V), {"mode": "token", "norm": "channel_softmax"}, 18.493553116061, 0,
        (0.300988, 0.285732),
    ),
    "lightnet": (
        (torch.nn.functional.silu(Q), K, V), {"norm": "channel_softmax"}, 3.380862380923, 0, (0.064524, 0.040688)
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("name", WORKED)
def test_published_forms(name, backend):
    inputs, options, total, row, first = WORKED[name]
    out, state = linear_state(*inputs, backend=backend, **options)
    assert out.sum().item() == pytest.approx(total, abs=2e-8)
    torch.testing.assert_close(out[0, row, 0, : len(first)], torch.tensor(first).double(), rtol=0, atol=2e-6)
    assert state.count == 8


def test_hybrid_forcing_mean_form_equals_the_sum_form():
    # Its state is a mean over n tokens, so eps weighs n times as much in the sum form.
    out, _ = linear_state(ROT_Q, ROT_K, V, q_den=Q.relu(), k_den=K.relu(), eps=8e-6)
    assert out.sum().item() == pytest.approx(12.374739533662, abs=1e-6)


def test_flowformer_through_value_weights():
    q, k, e = Q.sigmoid(), K.sigmoid(), 1e-6
    incoming = 1 / ((q + e) * (k.sum(1, keepdim=True) + e)).sum(-1)
    outgoing = 1 / ((k + e) * (q.sum(1, keepdim=True) + e)).sum(-1)
    conserved_in = ((q + e) * ((k * outgoing[..., None]).sum(1, keepdim=True) + e)).sum(-1)
    conserved_out = ((k + e) * ((q * incoming[..., None]).sum(1, keepdim=True) + e)).sum(-1).clamp(-1, 1)
    competition = 8 * conserved_out.softmax(1)
    out, _ = linear_state(q, k, V, norm="none", value_weight=competition)
    out = out * (incoming * conserved_in.sigmoid())[..., None]
    assert out.sum().item() == pytest.approx(-1.113295443267, abs=1e-9)


def test_rala_through_key_weights():
    q, k = elu1(Q), elu1(K)
    weights = 8 * ((q.mean(1, keepdim=True) * k).sum(-1) * 4**-0.5).softmax(1)
    out, _ = linear_state(q, k, V, key_weight=weights, eps=8e-6)
    assert out.sum().item() == pytest.approx(12.538248678306, abs=1e-5)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_unselected_blocks_of_a_sparse_plan(backend):
    plan = BlockPlan.from_dense_blocks(torch.tensor([[True, False], [True, False]]), 8, 8, block_q=4, block_k=4)
    out, state = linear_state(Q.softmax(-1), K.softmax(-1), V, exclude=plan, eps=1e-5, backend=backend)
    assert out.sum().item() == pytest.approx(-26.841590041041, abs=1e-9) and state is None
    everything = BlockPlan.dense(8, 8, block_q=4, block_k=4)
    none, _ = linear_state(Q.softmax(-1), K.softmax(-1), V, exclude=everything, backend=backend)
    assert none.abs().max() == 0


def random_inputs(seed, b=2, n=13, h=2, d=3, e=5):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    q, k, v = draw(b, n, h, d).exp(), draw(b, n, h, d).exp(), draw(b, n, h, e)
    return q, k, v, draw(b, n, h).exp(), draw(b, n, h).exp(), draw


def test_excluded_blocks_with_an_order_and_per_head_lists():
    q, k, v, weight, other, _ = random_inputs(3, n=15)
    order = TokenOrder.from_grid((3, 5), (2, 2))
    mask = torch.rand(2, 2, order.blocks, order.blocks, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 0] = True
    plan = BlockPlan.from_dense_blocks(mask, 15, 15, order=order)
    pair = [
        linear_state(q, k, v, key_weight=weight, value_weight=other, exclude=plan, backend=b)[0] for b in backends()
    ]
    torch.testing.assert_close(*pair)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([1, 5, 16, 67]),
    mode=st.sampled_from(["all", "frame", "chunk", "token"]),
    norm=st.sampled_from(["sum", "none", "channel_softmax"]),
    group=st.sampled_from([1, 4, 7]),
    decayed=st.sampled_from(["no", "head", "step"]),
    weighted=st.booleans(),
    started=st.booleans(),
)
def test_chunked_equals_reference_with_gradients(seed, n, mode, norm, group, decayed, weighted, started):
    q, k, v, weight, other, draw = random_inputs(seed, n=n)
    steps = n if mode == "token" else -(-n // group)
    leaves = {"q": q, "k": k, "v": v}
    if weighted:
        leaves |= {"key_weight": weight, "value_weight": other}
    if decayed != "no" and mode != "all" and norm != "channel_softmax":
        leaves["decay"] = -(draw(2) if decayed == "head" else draw(2, steps, 2)).abs()
    if started:
        leaves |= {"kv": draw(2, 2, 3, 5), "z": draw(2, 2, 3).exp()}
    found = []
    for backend in backends():
        inputs = {name: x.clone().requires_grad_() for name, x in leaves.items()}
        options = {name: x for name, x in inputs.items() if name not in ("kv", "z")}
        if started:
            options["state"] = LinearState(inputs["kv"], inputs["z"], 4, norm == "channel_softmax")
        out, state = linear_state(
            **options, mode=mode, norm=norm, group=group if mode in ("frame", "chunk") else None, backend=backend
        )
        # a linear loss: a bent one would multiply roundings of large outputs
        results = [out, state.kv, state.z]
        sum((x * torch.sin(torch.arange(x.numel()).to(x)).view(x.shape)).sum() for x in results).backward()
        found.append([*results, *(x.grad for x in inputs.values())])
        assert state.count == n + (4 if started else 0)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm", ["sum", "none", "channel_softmax"])
def test_a_stream_of_pieces_equals_the_whole(norm):
    q, k, v, *_ = random_inputs(1, n=12)
    whole, end = linear_state(q, k, v, mode="frame", group=4, norm=norm)
    state, pieces = None, []
    for at in range(0, 12, 4):
        span = slice(at, at + 4)
        out, state = linear_state(q[:, span], k[:, span], v[:, span], mode="frame", group=4, norm=norm, state=state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state.kv, end.kv)
    merged = [linear_state(q[:, s], k[:, s], v[:, s], norm=norm)[1] for s in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(merged[0].merge(merged[1]).kv, linear_state(q, k, v, norm=norm)[1].kv)
    assert merged[1].merge(merged[0]).count == 12


def test_identities():
    q, k, v, *_ = random_inputs(2)
    out, _ = linear_state(q, k, v)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear_state(q, k[:, order], v[:, order])[0], out)
    torch.testing.assert_close(linear_state(q, k, v, mode="frame", group=13)[0], out)
    constant, _ = linear_state(q, k, torch.full_like(v, 3.0), eps=0.0)
    torch.testing.assert_close(constant, torch.full_like(constant, 3.0))
    masked = torch.ones(2, 13, 2, dtype=torch.float64)
    masked[:, 9:] = 0
    hidden = linear_state(q, k, v, key_weight=masked)[0][:, :9]
    torch.testing.assert_close(hidden, linear_state(q[:, :9], k[:, :9], v[:, :9])[0])


def test_large_logits_and_low_precision_do_not_overflow():
    q, k, v, *_ = random_inputs(4)
    out, _ = linear_state(q, 300 * k, v, norm="channel_softmax", mode="token")
    assert out.isfinite().all()
    half, state = linear_state(*(100 * x.half() for x in (q, k)), v.half())
    assert half.dtype == torch.float16 and state.kv.dtype == torch.float32
    exact = linear_state(*(100 * x.half().double() for x in (q, k)), v.half().double())[0]
    assert (half.double() - exact).abs().max() < 2e-3 * v.abs().max()


def test_decayed_state_detaches_and_moves():
    q, k, v, *_ = random_inputs(5)
    state = linear_state(q.requires_grad_(), k.requires_grad_(), v)[1]
    halved = state.decay(torch.tensor(0.5).log())
    torch.testing.assert_close(halved.z, state.z / 2)
    assert not state.detach().kv.requires_grad and state.to("cpu").count == 13


def test_wrong_options_are_refused():
    q, k, v, weight, *_ = random_inputs(6)
    plan = BlockPlan.dense(13, 13, block_q=4, block_k=4)
    soft = linear_state(q, k, v, norm="channel_softmax")[1]
    for options in (
        {"mode": "frames"}, {"mode": "frame"}, {"group": 4}, {"norm": "l2"}, {"mode": "frame", "group": 0},
        {"decay": torch.zeros(2)}, {"mode": "token", "decay": torch.zeros(3)}, {"exclude": plan, "mode": "token"},
        {"norm": "channel_softmax", "k_den": k}, {"state": soft}, {"key_weight": weight[:, :4]}, {"q_den": q[:, :4]},
        {"backend": "cuda"}, {"exclude": BlockPlan.dense(12, 12, block_q=4, block_k=4)},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            linear_state(q, k, v, **options)
    for wrong in ((q, k[:, :4], v), (q, k, v[:, :, :1]), (q[:1], k, v), (q[:, :0], k, v)):
        with pytest.raises(UsageError):
            linear_state(*wrong)
    with pytest.raises(UsageError, match=r"LinearState\.read"):
        linear_state(q[:, :4], k, v, mode="token")
    three = BlockPlan.from_dense_blocks(torch.ones(1, 3, 4, 4, dtype=torch.bool), 13, 13, block_q=4, block_k=4)
    with pytest.raises(UsageError, match="3 heads, got 2 rows and 2 heads"):
        linear_state(q, k, v, exclude=three)
    with pytest.raises(UsageError):
        soft.merge(linear_state(q, k, v)[1])
    with pytest.raises(UsageError):
        soft.decay(-1.0)
    assert why_not("chunked", q) is None and "int64" in why_not("chunked", torch.ones(1, dtype=torch.long))
