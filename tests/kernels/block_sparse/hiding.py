"""Biases that hide pairs with -inf, over the first, the middle or all key tiles of some rows."""

from __future__ import annotations

import torch
from oracle import attend

from genkit.kernels import BlockPlan, LowRank, Quadratic, Rule, Table, block_sparse_attention

N_Q, N_K, BLOCK = 37, 90, 32
PLACES = {"first": (0, BLOCK), "middle": (BLOCK, 2 * BLOCK), "last": (2 * BLOCK, N_K), "all": (0, N_K)}
INF = float("inf")


def low_rank(low: int, high: int):
    """Queries 5 to 8 do not see the keys [low, high): rank 2, the second one hides."""
    noise = torch.Generator().manual_seed(1)
    f, g = torch.randn(1, N_Q, 1, 2, generator=noise), torch.randn(1, N_K, 2, 2, generator=noise)
    matrix = torch.einsum("bihr,bjhr->bhij", f[..., :1].expand(1, N_Q, 2, 1), g[..., :1]).clone()
    f[..., 1], g[..., 1] = 1, 0
    g[:, low:high, :, 1] = -INF
    hidden = torch.zeros(N_Q, N_K, dtype=torch.bool)
    hidden[:, low:high] = True
    return LowRank(f, g), matrix.masked_fill(hidden, -INF), hidden


def quadratic(low: int, high: int):
    """The same by a squared distance that overflows."""
    q_pos, k_pos = torch.zeros(N_Q, 1), torch.zeros(N_K, 1)
    k_pos[low:high] = 1e25
    hidden = (k_pos.T != 0).expand(N_Q, N_K)
    return Quadratic(q_pos, k_pos, torch.ones(1, 1)), torch.zeros(1, 1, N_Q, N_K).masked_fill(hidden, -INF), hidden


def table(low: int, high: int):
    """The same by an entry of a table."""
    q_pos, k_pos = torch.zeros(N_Q, 1), torch.zeros(N_K, 1)
    k_pos[low:high] = 1
    values = torch.tensor([[-INF, 0.5, -INF]])
    hidden = (k_pos.T != 0).expand(N_Q, N_K)
    return Table((values,), q_pos, k_pos), torch.full((1, 1, N_Q, N_K), 0.5).masked_fill(hidden, -INF), hidden


def plans() -> dict[str, tuple[BlockPlan, torch.Tensor]]:
    """Full blocks only but for the tail, a mask in closed form, and the same one as bits."""
    place = torch.arange(N_K)
    reach = 2 * torch.arange(N_Q)[:, None] + 20
    rule = Rule(torch.zeros(N_Q, 1), reach, place[:, None], torch.zeros(N_Q), torch.zeros(N_K), torch.full((1, 1), 2))
    sizes = dict(block_q=16, block_k=BLOCK)
    bits = BlockPlan.from_mask_mod(lambda b, h, i, j: j < 2 * i + 20, N_Q, N_K, **sizes)
    return {
        "dense": (BlockPlan.dense(N_Q, N_K, **sizes), torch.ones(N_Q, N_K, dtype=torch.bool)),
        "rule": (BlockPlan.from_rule(rule, **sizes), place < reach),
        "bits": (bits, place < reach),
    }


def compare(backend: str, make, where: str, plan_name: str, dtype=torch.float32, with_gradients: bool = True) -> None:
    """Output, lse and gradients of q, k, v against the pairs hidden by a mask, in float64."""
    plan, mask = plans()[plan_name]
    bias, matrix, hidden = make(*PLACES[where])
    g = torch.Generator().manual_seed(3)
    shapes = (1, N_Q, 2, 16), (1, N_K, 1, 16), (1, N_K, 1, 16)
    q, k, v = (torch.randn(shape, generator=g).to(dtype) for shape in shapes)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    given = [x.requires_grad_(with_gradients) for x in (q, k, v)]
    seen = (mask & ~hidden)[None, None]
    exact = attend(*wide, seen, 0.25, matrix.double().masked_fill(hidden, 0))
    found = block_sparse_attention(*given, plan, scale=0.25, backend=backend, bias=bias)
    near = dict(rtol=0, atol=5e-6 if dtype == torch.float32 else 4e-3)
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x.double(), y, **near)
    if where == "all":
        assert not found[0].any() and bool((found[1] == -INF).all())
    if not with_gradients:
        return
    out, lse = torch.randn(found[0].shape, generator=g), torch.randn(found[1].shape, generator=g)
    incoming = out.to(dtype), lse
    # what arrives at the lse of a row that sees nothing belongs to nobody
    wanted = torch.autograd.grad(exact, wide, [out.double(), lse.masked_fill(exact[1] == -INF, 0).double()])
    for x, y in zip(torch.autograd.grad(found, given, incoming), wanted, strict=True):
        torch.testing.assert_close(x.double(), y, **near)


def factor_gradients(backend: str, where: str) -> None:
    """Gradients of the factors: those of the finite one, and nothing for what is hidden."""
    plan, mask = plans()["rule"]
    bias, matrix, hidden = low_rank(*PLACES[where])
    g = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, n, h, 16, generator=g) for n, h in ((N_Q, 2), (N_K, 1), (N_K, 1)))
    leaves = [bias.f.clone().requires_grad_(), bias.g.clone().requires_grad_()]
    out, _ = block_sparse_attention(q, k, v, plan, scale=0.25, backend=backend, bias=LowRank(*leaves))
    incoming = torch.randn(out.shape, generator=g)
    found = torch.autograd.grad(out, leaves, incoming)
    wide = [x.detach().double().masked_fill(x.isinf(), 0).requires_grad_() for x in leaves]
    dense = torch.einsum("bihr,bjhr->bhij", wide[0].expand(1, N_Q, 2, 2), wide[1])
    exact, _ = attend(q, k, v, (mask & ~hidden)[None, None], 0.25, dense)
    for x, y in zip(found, torch.autograd.grad(exact, wide, incoming.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-5)
