"""Per-token block selection: exactness against brute force, gradients, GQA, ragged blocks, refusals, torch.compile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genkit.errors import UnsupportedError, UsageError
from genkit.kernels.block_lists import BlockLists, list_mask
from genkit.kernels.merge import merge
from genkit.kernels.native import compiler, kinds, library
from genkit.kernels.native.attention import passes as block_sparse
from genkit.kernels.token_select import backends, token_select_attention, why_not
from genkit.kernels.token_select.impl.cpu import backend as cpu
from genkit.kernels.token_select.impl.cpu import visits as native


def brute_force(q, k, v, selected, starts, scale=None):
    """Float64, written with loops over heads and tokens, sharing nothing with the operator."""
    q, k, v = (x.double() for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    b, n, h, d = q.shape
    owner = torch.zeros(k.shape[1], dtype=torch.long)
    for number, (lo, hi) in enumerate(zip(starts, starts[1:], strict=False)):
        owner[lo:hi] = number
    out, lse = torch.zeros(b, n, h, d, dtype=torch.float64), torch.full((b, h, n), -torch.inf, dtype=torch.float64)
    rows, sums = [], []
    for batch in range(b):
        for token in range(n):
            for head in range(h):
                seen = selected[batch % selected.shape[0], head % selected.shape[1], token][owner]
                other = head // (h // k.shape[2])
                if not seen.any():
                    rows.append(out[0, 0, 0] * 0)
                    sums.append(lse[0, 0, 0])
                    continue
                scores = k[batch, seen, other] @ q[batch, token, head] * scale
                sums.append(torch.logsumexp(scores, 0))
                rows.append(torch.softmax(scores, 0) @ v[batch, seen, other])
    return torch.stack(rows).view(b, n, h, d), torch.stack(sums).view(b, n, h).transpose(1, 2)


def problem(
    seed, b=2, n=13, m=17, h=4, hk=2, d=8, starts=(0, 5, 6, 12, 17), density=0.5, dtype=torch.float32, scale=1.0
):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, t, heads, d, generator=g).mul(scale).to(dtype) for t, heads in ((n, h), (m, hk), (m, hk)))
    selected = torch.rand(b, h, n, len(starts) - 1, generator=g) < density
    selected[..., 0] |= ~selected.any(-1)
    return q, k, v, selected, list(starts)


def run_with_gradients(function, q, k, v, seed=7):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = function(*leaves)
    g = torch.Generator().manual_seed(seed)
    d_out = torch.randn(out.shape, generator=g, dtype=torch.float64)
    d_lse = torch.randn(lse.shape, generator=g, dtype=torch.float64)
    seen = lse != -torch.inf
    ((out.double() * d_out).sum() + torch.where(seen, lse.double() * d_lse, 0).sum()).backward()
    return out, lse, *(x.grad for x in leaves)


REFUSED = {
    **{kind: library.processor_why_not(kind) for kind in library.KINDS},
    "emitted": compiler.why_not("vectors"),
}
every_kind = pytest.mark.parametrize(
    "switch",
    [
        pytest.param(kind, marks=pytest.mark.skipif(reason is not None, reason=f"{reason}"))
        for kind, reason in REFUSED.items()
    ],
)
WAYS = ("torch", "by query", "by block")


def go(way, patch):
    """Make the CPU backend go a way: as on a machine without native kernels, or with the one or the other lists."""
    if way == "torch":
        patch.setattr(block_sparse, "inputs_why_not", lambda *given: "for this test")
    else:
        patch.setattr(native, "_ROW", dict.fromkeys((False, True), torch.inf if way == "by query" else -torch.inf))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    backend=st.sampled_from([*WAYS, "reference"]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    d=st.sampled_from([4, 40, 64]),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    scale=st.sampled_from([1.0, 4.0]),
    cuts=st.lists(st.integers(1, 16), max_size=4, unique=True),
)
def test_outputs_and_gradients_equal_brute_force(seed, backend, heads, d, density, scale, cuts):
    starts = [0, *sorted(cuts), 17]
    q, k, v, selected, starts = problem(seed, 1, 7, 17, *heads, d, starts, density, scale=scale)
    want = run_with_gradients(lambda *x: brute_force(*x, selected, starts), q.double(), k.double(), v.double())
    with pytest.MonkeyPatch.context() as patch:
        if backend != "reference":
            go(backend, patch)
            backend = "cpu"
        have = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, backend=backend), q, k, v)
    for name, got, exact in zip(("out", "lse", "dq", "dk", "dv"), have, want, strict=True):
        error = (got.double() - exact).abs().max() / exact.abs().max().clamp(min=1)
        # Gradients recompute exp(score - lse): with inputs scaled by 4 both are near 40, known to 4e-6 in float32.
        assert error < 2e-5 * scale, f"{name}: {error:.1e}"


@pytest.mark.parametrize("limit", [1, 300, 1500])
@pytest.mark.parametrize("density", [0.0, 0.4])
def test_torch_kernel_in_many_parts_equals_brute_force(monkeypatch, limit, density):
    go("torch", monkeypatch)
    monkeypatch.setattr(cpu, "COPY_BYTES", limit)
    q, k, v, selected, starts = problem(8, density=density)
    selected[1, 2, 4:] = False
    parts = list(cpu._parts(selected, q.shape[-1]))
    covered = torch.zeros(selected.shape[:3], dtype=torch.int32)
    for part in parts:
        covered[part.batch, part.heads, part.span] += 1
    assert len(parts) > 2 and (covered == 1).all()
    calls = (
        lambda *x: brute_force(*x, selected, starts),
        lambda *x: token_select_attention(*x, selected, starts, backend="cpu", allow_empty=True),
    )
    want, have = (run_with_gradients(call, *(x.to(kind) for x in (q, k, v))) for call, kind in zip(
        calls, (torch.float64, torch.float32), strict=True
    ))  # fmt: skip
    for got, exact in zip(have, want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-5)


@every_kind
@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("starts", [range(0, 449, 64), (0, 40, 100, 129, 137, 300, 470), range(0, 300, 23)])
def test_native_kernels_equal_brute_force(monkeypatch, switch, way, dtype, starts):
    """Blocks of whole units, of any length, and shorter than a unit; three groups of queries, some without a block."""
    monkeypatch.setenv(kinds.SWITCH, switch)
    go(way, monkeypatch)
    starts = list(starts)
    q, k, v, selected, starts = problem(5, 2, 150, starts[-1], 2, 1, 64, starts, 0.3, dtype)
    selected[:, :, 64:128, 1:] = False
    selected[:, :, 64:128, 0] = True  # all of these see the same
    selected[0, 1, 140] = False
    selected[0, 0, :, 3] = False  # a block that nobody chose
    assert native.lists(q, k, v, selected, starts).anywhere is (way == "by block")
    want = run_with_gradients(lambda *x: brute_force(*x, selected, starts), q.double(), k.double(), v.double())
    have = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts, allow_empty=True), q, k, v)
    rough = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for got, exact in zip(have, want, strict=True):
        assert torch.equal(got.isfinite(), exact.isfinite())
        seen = exact.isfinite()
        assert (got.double() - exact)[seen].abs().max() <= rough * exact[seen].abs().max().clamp(min=1)


@every_kind
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 3), (4, 4)])
def test_heads_shared_out_among_threads_change_nothing(monkeypatch, switch, heads):
    monkeypatch.setenv(kinds.SWITCH, switch)
    monkeypatch.setattr(native, "_RANGE", 100)
    go("by block", monkeypatch)
    q, k, v, selected, starts = problem(7, 1, 300, 200, *heads, 16, range(0, 201, 50))
    found = {}
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        monkeypatch.setattr(native, "_TOGETHER", 1 if threads == 3 else 1 << 20)
        found[threads] = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts), q, k, v)
    torch.set_num_threads(before)
    for threads in (2, 3):
        for got, exact in zip(found[threads], found[1], strict=True):
            assert torch.equal(got, exact)


def test_blocks_are_visited_one_by_one_where_neighbours_choose_differently_or_they_must_be():
    q, k, v, selected, starts = problem(6, 1, 640, 6400, 1, 1, 8, range(0, 6401, 64), 0.02)
    alike = selected[:, :, ::64].repeat_interleave(64, 2)
    assert not native.lists(q, k, v, alike, starts).anywhere
    assert native.lists(q, k, v, selected, starts).anywhere
    v[0, 0] = torch.inf
    assert native.lists(q, k, v, alike, starts).anywhere


@pytest.mark.parametrize("way", WAYS)
def test_infinite_values_reach_only_queries_that_chose_their_block(monkeypatch, way):
    go(way, monkeypatch)
    q, k, v, selected, starts = problem(9, 1, 100, 170, 1, 1, 16, (0, 50, 120, 170), 0.5)
    v[0, 60] = torch.inf
    out, _ = token_select_attention(q, k, v, selected, starts)
    assert torch.equal(~out[0, :, 0].isfinite().all(-1), selected[0, 0, :, 1])


def test_every_block_selected_equals_dense_attention():
    q, k, v, selected, starts = problem(0, h=4, hk=4, density=2.0)
    assert selected.all()
    out, lse = token_select_attention(q, k, v, selected, starts)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-6)


def test_own_block_and_the_rest_merge_to_the_union():
    q, k, v, selected, starts = problem(1, n=17, h=2, hk=2)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(starts).diff())
    own = torch.nn.functional.one_hot(owner, 4).bool()[None, None].expand_as(selected)
    union = token_select_attention(q, k, v, selected | own, starts)
    first = token_select_attention(q, k, v, own, starts)
    rest = token_select_attention(q, k, v, selected & ~own, starts, allow_empty=True)
    for merged, whole in zip(merge([first, rest]), union, strict=True):
        torch.testing.assert_close(merged, whole, rtol=0, atol=1e-6)


def test_block_size_and_offsets_mean_the_same_and_strides_do_not_matter():
    q, k, v, selected, _ = problem(2, starts=(0, 5, 10, 15, 17))
    by_size = token_select_attention(q, k, v, selected, 5)
    by_offset = token_select_attention(q, k, v, selected, torch.tensor([0, 5, 10, 15, 17]))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    strided = token_select_attention(*turned, selected.transpose(2, 3).contiguous().transpose(2, 3), 5)
    for other in (by_offset, strided):
        assert torch.equal(by_size[0], other[0]) and torch.equal(by_size[1], other[1])


@pytest.mark.parametrize("dtype,budget", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_low_precision_stays_near_float64(dtype, budget):
    q, k, v, selected, starts = problem(3, dtype=dtype)
    want = run_with_gradients(lambda *x: brute_force(*x, selected, starts), q.double(), k.double(), v.double())
    have = run_with_gradients(lambda *x: token_select_attention(*x, selected, starts), q, k, v)
    for got, exact in zip(have, want, strict=True):
        assert (got.double() - exact).abs().max() <= budget * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("way", WAYS)
def test_nan_stays_in_the_rows_that_see_it(monkeypatch, way):
    go(way, monkeypatch)
    q, k, v, selected, starts = problem(4, b=1, h=1, hk=1)
    q[0, 3] = torch.nan
    out, _ = token_select_attention(q, k, v, selected, starts)
    assert out[0, 3].isnan().all() and not out[0, [0, 1, 2, 4]].isnan().any()
    q, k, v, selected, starts = problem(4, b=1, h=1, hk=1)
    k[0, 5] = torch.nan
    out, lse = token_select_attention(q, k, v, selected, starts)
    sees = selected[0, 0, :, 1]
    assert 0 < sees.sum() < len(sees)
    assert torch.equal(out[0, :, 0].isnan().all(-1), sees) and torch.equal(lse[0, 0].isnan(), sees)


def test_rows_without_a_block_raise_unless_allowed():
    q, k, v, selected, starts = problem(5)
    selected[1, 2, 4] = False
    with pytest.raises(UsageError, match="query token 4 of batch 1, head 2"):
        token_select_attention(q, k, v, selected, starts)
    for backend in ("cpu", "reference"):
        out, lse = token_select_attention(q, k, v, selected, starts, allow_empty=True, backend=backend)
        assert out[1, 4, 2].abs().max() == 0 and lse[1, 2, 4] == -torch.inf


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_queries_give_no_output_and_no_gradient(backend):
    q, k, v, selected, starts = problem(5, n=0)
    out, lse, *gradients = run_with_gradients(
        lambda *x: token_select_attention(*x, selected, starts, backend=backend), q, k, v
    )
    assert out.shape == q.shape and lse.shape == selected.shape[:3]
    assert all(x is None or not x.any() for x in gradients)


def test_wrong_arguments_are_refused():
    q, k, v, selected, starts = problem(6)
    for call in (
        lambda: token_select_attention(q, k, v, selected, [0, 5, 17]),
        lambda: token_select_attention(q, k, v, selected, [0, 5, 5, 12, 17]),
        lambda: token_select_attention(q, k, v, selected, 0),
        lambda: token_select_attention(q, k.double(), v, selected, starts),
        lambda: token_select_attention(q[:, :, :3], k, v, selected[:, :3], starts),
        lambda: token_select_attention(q, k, v, selected.float(), starts),
        lambda: token_select_attention(q, k, v, selected, starts, backend="cuda"),
        lambda: token_select_attention(q[0], k, v, selected, starts),
    ):
        with pytest.raises(UsageError):
            call()


def test_a_backend_asked_for_by_name_runs_or_says_why_not():
    q, k, v, selected, starts = problem(7)
    assert set(backends()) == {"triton", "cpu", "reference"} and why_not("cpu", q, k, v) is None
    assert "dtype" in why_not("triton", q.double(), k.double(), v.double())
    with pytest.raises(UnsupportedError, match="torch.float64"):
        token_select_attention(q.double(), k.double(), v.double(), selected, starts, backend="triton")


def test_operator_registration_passes_the_checks_of_torch():
    q, k, v, selected, starts = problem(8, b=1, n=6, h=2, hk=1)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    for chosen in ([selected], list(list_mask(selected))):
        given = (q, k, v, chosen, len(starts) - 1, starts, 0.3, "cpu")
        assert set(torch.library.opcheck(torch.ops.genkit.token_select.default, given).values()) == {"SUCCESS"}


def test_lists_are_as_good_as_a_mask_and_have_a_bound():
    q, k, v, selected, starts = problem(11)
    lists = list_mask(selected)
    for backend in ("cpu", "reference"):
        found = [
            run_with_gradients(lambda *x, s=s, b=backend: token_select_attention(*x, s, starts, backend=b), q, k, v)
            for s in (selected, lists)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    most = int(selected.sum(-1).max())
    token_select_attention(q, k, v, lists, starts, most=most)
    with pytest.raises(UsageError, match=f"chose {most} key blocks, but most={most - 1}"):
        token_select_attention(q, k, v, lists, starts, most=most - 1)
    with pytest.raises(UsageError, match="must be int32 lists of"):
        token_select_attention(q, k, v, BlockLists(lists.count[:, :, :3], lists.index), starts)


def test_compiles_as_one_graph():
    q, k, v, selected, starts = problem(9)

    def function(q, k, v, selected):
        return token_select_attention(q * 2, k, v, selected, [0, 5, 6, 12, 17])[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, selected), function(q, k, v, selected))
