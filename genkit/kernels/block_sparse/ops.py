"""The torch operators behind :func:`block_sparse_attention`: schemas, shapes for the compiler, gradients.

An operator takes a plan as its tables. The plan object itself, with everything cached on it, is found again through a
weak registry by the identity of one table, so nothing is kept alive and a plan made inside a compiled graph works too.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from genkit.errors import UnsupportedError
from genkit.kernels import discovery
from genkit.kernels.block_sparse import impl
from genkit.kernels.plan import bias as biases
from genkit.kernels.plan.bit_tiles import BitTiles
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.kernels.plan.mask_spec import Rule

_WITH_TILES = 8  # tables of a plan with bit tiles; a mask specification has more

_plans: WeakValueDictionary[int, BlockPlan] = WeakValueDictionary()


def backends() -> tuple[str, ...]:
    """Names of the backends found in ``impl``, in the order ``auto`` tries them. The reference is exact and runs
    everywhere, so the search always ends."""
    return tuple(discovery.implementations(impl))


def load(name: str) -> ModuleType:
    """The module of a backend."""
    return discovery.load(impl, name)


def choose(
    backend: str, q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, bias: Sequence[biases.Bias], needs_grad: bool
) -> ModuleType:
    """The module that will run: the one named, or the first that can.

    Raises:
        UsageError: unknown name. UnsupportedError: the named backend cannot run these inputs; the message says why.
    """
    reasons = {}
    for name in discovery.automatic(discovery.implementations(impl)) if backend == "auto" else (backend,):
        module = load(name)
        reasons[name] = module.why_not(q, k, v, plan, bias=bias, needs_grad=needs_grad)
        if reasons[name] is None:
            return module
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UnsupportedError(f"block-sparse attention cannot run with backend {backend!r}: {told}")


def _listed(plan: BlockPlan) -> list[Tensor]:
    found = [plan.full_count, plan.full_index, plan.partial_count, plan.partial_index, plan.q_valid, plan.k_valid]
    if plan.tiles is not None:
        return [*found, plan.tiles.words, plan.tiles.index]
    return found if plan.rule is None else found + plan.rule.tensors()


def tables(plan: BlockPlan) -> tuple[list[Tensor], list[int]]:
    """What an operator is given of a plan (in block order, without pooled parts)."""
    radius2 = -1 if plan.rule is None or plan.rule.radius2 is None else plan.rule.radius2
    if not torch.compiler.is_compiling():
        remember(plan)
    return _listed(plan), [plan.n_q, plan.n_k, plan.block_q, plan.block_k, radius2, int(plan.even_keys)]


def remember(plan: BlockPlan) -> None:
    """Let :func:`recover` find this very object, with its caches, as long as somebody holds it."""
    _plans[id(plan.full_index)] = plan


def recover(found: Sequence[Tensor], sizes: Sequence[int]) -> BlockPlan:
    """The plan of :func:`tables`: the registered object, or a new one around the same tables."""
    plan = _plans.get(id(found[1]))
    if plan is not None and plan.order is None and plan.key_order is None:
        own = _listed(plan)
        if len(own) == len(found) and all(a is b for a, b in zip(own, found, strict=True)):
            return plan
    n_q, n_k, block_q, block_k, radius2, even = sizes
    rule = tiles = None
    if len(found) == _WITH_TILES:
        tiles = BitTiles(*found[6:])
    elif len(found) > 6:
        rule = Rule.from_tensors(found[6:], None if radius2 < 0 else radius2)
    count, index, part_count, part_index, q_valid, k_valid = found[:6]
    return BlockPlan(
        n_q, n_k, block_q, block_k, count, index, part_count, part_index, q_valid, k_valid, rule, tiles,
        even_keys=bool(even),
    )  # fmt: skip


@torch.library.custom_op("genkit::block_sparse", mutates_args=())
def block_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan_tables: list[Tensor],
    sizes: list[int],
    bias: list[Tensor],
    kinds: str,
    scale: float,
    backend: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of block-sparse attention, see :func:`genkit.kernels.block_sparse_attention`."""
    plan, terms = recover(plan_tables, sizes), biases.unflatten(kinds, bias)
    return choose(backend, q, k, v, plan, terms, needs_grad).forward(q, k, v, plan, scale, terms)


@block_sparse.register_fake
def _(q, k, v, plan_tables, sizes, bias, kinds, scale, backend, needs_grad):
    lse = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=lse)


@torch.library.custom_op("genkit::block_sparse_backward", mutates_args=())
def block_sparse_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan_tables: list[Tensor],
    sizes: list[int],
    bias: list[Tensor],
    kinds: str,
    scale: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of q, k, v and of every trainable bias table, in this order."""
    plan, terms = recover(plan_tables, sizes), biases.unflatten(kinds, bias)
    module = choose(backend, q, k, v, plan, terms, True)
    dq, dk, dv, rest = module.backward(grad_out, grad_lse, q, k, v, out, lse, plan, scale, terms)
    return [dq, dk, dv, *rest]


@block_sparse_backward.register_fake
def _(grad_out, grad_lse, q, k, v, out, lse, plan_tables, sizes, bias, kinds, scale, backend):
    wanted = [t for t, flag in zip(bias, biases.trainable(kinds), strict=True) if flag]
    return [x.new_empty(x.shape) for x in (q, k, v, *wanted)]


def _setup(ctx, inputs, output):
    q, k, v, plan_tables, sizes, bias, kinds, scale, backend, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, *plan_tables, *bias)
    ctx.tables, ctx.rest = len(plan_tables), (sizes, kinds, scale, backend)


def _backward(ctx, grad_out, grad_lse):
    q, k, v, out, lse, *more = ctx.saved_tensors
    plan_tables, bias = more[: ctx.tables], more[ctx.tables :]
    sizes, kinds, scale, backend = ctx.rest
    nothing = [None] * 4
    if grad_out is None and grad_lse is None:
        return None, None, None, [None] * len(plan_tables), None, [None] * len(bias), *nothing
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, *found = torch.ops.genkit.block_sparse_backward(
        grad_out, grad_lse, q, k, v, out, lse, plan_tables, sizes, bias, kinds, scale, backend
    )
    found = iter(found)
    dbias = [next(found) if flag else None for flag in biases.trainable(kinds)]
    return dq, dk, dv, [None] * len(plan_tables), None, dbias, *nothing


block_sparse.register_autograd(_backward, setup_context=_setup)
