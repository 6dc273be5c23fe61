"""The public entry of per-token selection: checks, choice of backend, autograd and torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels import discovery
from genkit.kernels.block_lists import BlockLists
from genkit.kernels.token_select import impl
from genkit.kernels.token_select.tables import as_mask

_BACKENDS = discovery.Backends(impl, "token_select")


def backends() -> tuple[str, ...]:
    """Names of the backends, in the order ``auto`` tries them."""
    return _BACKENDS.names()


def why_not(backend: str, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """None when ``backend`` can run these inputs, otherwise the reason why not."""
    return _BACKENDS.why_not(backend, q, k, v)


def token_select_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor | BlockLists,
    blocks: Tensor | list[int] | int,
    *,
    scale: float | None = None,
    backend: str = "auto",
    allow_empty: bool = False,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention in which every query token attends exactly to the keys of the blocks it selected (VMoBA).

    Args:
        q: (B, Nq, H, D).
        k, v: (B, Nk, Hk, D), Hk divides H. Tokens of a key block are neighbours in the sequence: permute first.
        selected: bool (B|1, H|1, Nq, C), which key blocks each query token attends to, or the same as
            :class:`~genkit.kernels.block_lists.BlockLists` of one list a token. No gradient flows through it.
        blocks: how keys split into C blocks: tokens per block (the last may be short), or the C + 1 token offsets
            ``[0, ..., Nk]`` of blocks of any length.
        scale: softmax scale, default 1/sqrt(D).
        backend: ``"auto"``, or one of :func:`backends`, which then runs or raises.
        allow_empty: let a query that selected nothing give output 0 and lse -inf (for merging with another part).
            Otherwise such a query raises, which costs one synchronisation with a GPU; lists, which a selection under a
            budget made, are not asked.
        most: blocks that a query chose at most, where that is known beforehand; None = C, or the width of the lists. On
            a GPU as much work is laid out as could be needed, and nobody looks whether it is true: of more blocks of a
            query the first ``most`` count.

    Returns:
        ``out`` (B, Nq, H, D) in the dtype of q, and ``lse`` (B, H, Nq) float32, natural logarithm; both differentiable
        in q, k and v.

    Cost: 4 * D per selected (token, key) pair and head. Selections that differ from token to token are what this
    operator is for; when whole query blocks share their key blocks, the block-sparse operator is faster.

    Raises:
        UsageError: shapes, dtypes or devices that do not fit, a query without a block.
        UnsupportedError: the backend asked for cannot run these inputs.
    """
    starts = _offsets(blocks, k.shape[1] if k.dim() == 4 else 0)
    _check(q, k, v, selected, starts)
    chosen = _BACKENDS.choose(backend, q, k, v)
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    wide = q.shape[0], q.shape[2]
    tables = [x.expand(*wide, *x.shape[2:]) for x in (selected if isinstance(selected, BlockLists) else (selected,))]
    blocks_of_a_row = min(len(starts) - 1, tables[-1].shape[-1])
    most = blocks_of_a_row if most is None else max(1, min(most, blocks_of_a_row))
    if len(tables) == 2 and q.device.type == "cpu" and bool((tables[0] > most).any()):
        raise UsageError(f"a query chose {int(tables[0].max())} key blocks, but most={most} was given")
    if len(tables) == 1 and not allow_empty:
        _refuse_empty(tables[0])
    if chosen == "reference":
        return _BACKENDS[chosen].attention(q, k, v, as_mask(tables, len(starts) - 1), starts, factor)
    return torch.ops.genkit.token_select(q, k, v, tables, most, starts, factor, chosen)


def _offsets(blocks: Tensor | list[int] | int, n: int) -> list[int]:
    if isinstance(blocks, bool) or not isinstance(blocks, (int, list, tuple, Tensor)):
        raise UsageError(f"blocks must be a block size or a list of offsets, got {blocks!r}")
    if isinstance(blocks, int):
        if blocks < 1:
            raise UsageError(f"blocks: a block needs at least 1 token, got {blocks}")
        return [*range(0, n, blocks), n]
    starts = blocks.tolist() if isinstance(blocks, Tensor) else [int(x) for x in blocks]
    if (
        len(starts) < 2
        or starts[0] != 0
        or starts[-1] != n
        or any(a >= b for a, b in zip(starts, starts[1:], strict=False))
    ):
        raise UsageError(
            f"blocks: offsets must rise from 0 to the number of keys {n} without empty blocks, got {starts}"
        )
    return starts


def _check(q: Tensor, k: Tensor, v: Tensor, selected: Tensor | BlockLists, starts: list[int]) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise UsageError(
            "token_select_attention needs q (B, Nq, H, D) and k, v (B, Nk, Hk, D), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[2] % k.shape[2]:
        raise UsageError(f"query heads must be a multiple of key heads, got {q.shape[2]} and {k.shape[2]}")
    lists = isinstance(selected, BlockLists)
    table = selected.index if isinstance(selected, BlockLists) else selected
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device == table.device:
        raise UsageError(
            f"q, k, v must share dtype and device (with selected), got {q.dtype}, {k.dtype}, {v.dtype} on {q.device}, "
            f"{k.device}, {v.device}, {table.device}"
        )
    wanted = (q.shape[0], q.shape[2], q.shape[1], len(starts) - 1)
    fits = table.dim() == 4 and all(
        have == want or (axis < 2 and have == 1) or (axis == 3 and lists)
        for axis, (have, want) in enumerate(zip(table.shape, wanted, strict=True))
    )
    if isinstance(selected, BlockLists):
        count, index = selected
        if not fits or count.shape != index.shape[:3] or not count.dtype == index.dtype == torch.int32:
            raise UsageError(
                f"selected must be int32 lists of {wanted[:3]} rows, got count {tuple(count.shape)} and index "
                f"{tuple(index.shape)}"
            )
        return
    if table.dtype != torch.bool or not fits:
        raise UsageError(f"selected must be bool {wanted}, got {table.dtype} {tuple(table.shape)}")


def _refuse_empty(selected: Tensor) -> None:
    if torch.compiler.is_dynamo_compiling():
        message = "a query token selects no key block, and allow_empty=True was not passed"
        torch._assert_async(selected.any(-1).all(), message)
        return
    # on a CPU numpy takes a tenth of the time
    some = torch.from_numpy(selected.numpy().any(-1)) if selected.device.type == "cpu" else selected.any(-1)
    if not bool(some.all()):
        batch, head, token = (~some).nonzero()[0].tolist()
        raise UsageError(
            f"query token {token} of batch {batch}, head {head} selects no key block; select at least one "
            "(its own), or pass allow_empty=True to get output 0 and lse -inf"
        )


@torch.library.custom_op("genkit::token_select", mutates_args=())
def _token_select(
    q: Tensor, k: Tensor, v: Tensor, selected: list[Tensor], most: int, starts: list[int], scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return _BACKENDS[backend].forward(q, k, v, selected, most, starts, scale)


@_token_select.register_fake
def _(q, k, v, selected, most, starts, scale, backend):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=wide)


@torch.library.custom_op("genkit::token_select_backward", mutates_args=())
def _token_select_backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, selected: list[Tensor],
    most: int, starts: list[int], scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _BACKENDS[backend].backward(d_out, d_lse, q, k, v, out, lse, selected, most, starts, scale)


@_token_select_backward.register_fake
def _(d_out, d_lse, q, k, v, out, lse, selected, most, starts, scale, backend):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    q, k, v, selected, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, *selected)


def _differentiate(ctx, d_out, d_lse):
    q, k, v, out, lse, *selected = ctx.saved_tensors
    grads = torch.ops.genkit.token_select_backward(d_out, d_lse, q, k, v, out, lse, selected, *ctx.rest)
    return (*grads, [None] * len(selected), *[None] * len(ctx.rest))


torch.library.register_autograd("genkit::token_select", _differentiate, setup_context=_save)
