"""Block-sparse attention in native kernels; the CPU backend hands over what these can do.

Keys are used as they lie in memory once a head is laid out, nothing is gathered or merged, and masks are a bit a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import e, log, log2

import torch
from torch import Tensor

from genkit.kernels.inputs import unit_rows
from genkit.kernels.native import compiler, kinds, library
from genkit.kernels.native.attention.bias import BiasTiles
from genkit.kernels.native.attention.visits import HALF, LOWEST, QUERIES, Lists
from genkit.kernels.native.batch import Batch, Values
from genkit.kernels.plan.bias import Bias
from genkit.kernels.plan.tables import PlanTables

MAX_DIM = 256
_MIN_QUERIES = 16  # of a block: the kernels work on 64 at a time
_MIN_KEYS = {False: 4, True: 8}  # without and with tiles: fewer would leave most slots of a visit empty
_BITS_BYTES = 16 << 20  # of masks from which on a part is run by itself
_PIECES = 4  # of work for every thread
_SHARES = 16  # of the heads' gradients of keys and values, for as many threads
_SHARED_QUERIES = 1024  # that a share should have
_SET_BYTES = 4 << 20  # keys and values laid out together, per thread: what a level-2 cache holds, or near it


def why_not(q: Tensor, plan: PlanTables, scale: float) -> str | None:
    """Why torch's own kernel has to do this, or None. UsageError where the switch holds no known name."""
    if reason := inputs_why_not(q, scale):
        return reason
    least = _MIN_KEYS[with_tiles(q.dtype)]
    if plan.block_q < _MIN_QUERIES or plan.block_k < least:
        return f"blocks of {plan.block_q}x{plan.block_k} are below {_MIN_QUERIES}x{least}"
    return None


def inputs_why_not(q: Tensor, scale: float) -> str | None:
    """Why no native kernel can run such inputs, whatever they visit, or None. UsageError as :func:`why_not`."""
    kinds.wanted()
    if q.dtype == torch.float64:
        return "the kernels have no float64"
    if q.shape[-1] > MAX_DIM:
        return f"head dim {q.shape[-1]} exceeds {MAX_DIM}"
    if not scale > 0:
        return f"scale {scale} is not positive"
    try:
        kinds.kind_for(q.dtype, q.shape[-1])
    except kinds.NoKernel as error:
        return str(error)
    return None


def with_tiles(dtype: torch.dtype) -> bool:
    """Whether bfloat16 can be multiplied in tiles; otherwise 16 bits are widened for vectors of float32."""
    return kinds.with_tiles(dtype)


def _kernel(name: str, kind: str, dim: int, unit: int) -> compiler.Compiled:
    """The kernel with this name, for ``dim`` padded channels and visits of ``unit`` keys."""
    if kind in library.KINDS:  # these take biases and queries anywhere besides
        return library.kernel(kind, name.partition(" ")[0], dim)
    return _emitted(name, kind, dim, unit)


@cache
def _emitted(name: str, kind: str, dim: int, unit: int) -> compiler.Compiled:
    from genkit.kernels.native.attention.anywhere import BackwardAnywhere, ForwardAnywhere
    from genkit.kernels.native.attention.backward import Backward, BackwardWithBias
    from genkit.kernels.native.attention.forward import Forward
    from genkit.kernels.native.attention.products import Tiles, Vectors

    walks = (Forward, ForwardAnywhere, Backward, BackwardAnywhere, BackwardWithBias)
    walk = {walk.NAME: walk for walk in walks}[name](dim, unit, {"tiles": Tiles, "vectors": Vectors}[kind])
    return compiler.compiled(walk.module(), kind, walk.e.names, walk.e.scratch_bytes)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float, bias: Sequence[Bias] = ()
) -> tuple[Tensor, Tensor]:
    """out (B, Nq, H, D) like q and lse (B, H, Nq) float32."""
    batch, n_q, heads, dim = q.shape
    group, dtype, kind = heads // k.shape[2], q.dtype, _kind(lists, q)
    q, k, v = (_padded(x, kind) for x in (q, k, v))
    q = q if lists.tiles else q.float()
    out, total = _results(lists, q), torch.zeros(batch, heads, n_q)
    top = torch.full_like(total, LOWEST if lists.anywhere else 0.0)
    common, tiles = _common(lists, scale, q=q, out=out), BiasTiles(bias, lists, scale)
    work = Batch(_kernel("forward anywhere" if lists.anywhere else "forward", kind, q.shape[-1], lists.unit))
    for entry, low, keys, values in _laid_out(lists, work.threads, q.dtype, (k, False), (v, lists.tiles)):
        pieces = _pieces(work.threads, len(keys) * group)
        for head in range(low * group, (low + len(keys)) * group):
            own = {**common, "k": keys[head // group - low], "v": values[head // group - low]}
            for part in lists.visits(entry, head):
                rows = slice(part.first * lists.block, None)
                own.update(
                    q=q[entry, rows, head],
                    out=out[entry, rows, head],
                    top=top[entry, head, rows],
                    total=total[entry, head, rows],
                    visits=part,
                    **part.tables,
                )
                for piece in part.pieces(pieces):
                    for call in tiles.calls(part, *piece, entry, head):
                        work.add({**own, **call})
                        if tiles.full:
                            work.run()
                            tiles.collect()
                if part.bits.nbytes >= _BITS_BYTES:  # else those of all heads may be held at once
                    work.run()
        work.run()  # before the next heads are laid out over these
        tiles.collect()
    if lists.anywhere:
        out /= total.masked_fill(total == 0, 1).transpose(1, 2).unsqueeze(-1)
    lse = total.log2_().add_(top).mul_(log(2))
    return _narrow(out, dim, dtype), lse


def row_term(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor) -> Tensor:
    """What :func:`backward` subtracts from dO V^T, (B, H, Nq) float32: the sum of dO * O, less the gradient of lse."""
    delta = torch.linalg.vecdot(grad_out.float(), out.float()).transpose(1, 2)
    # rows without a key have a constant lse: what arrives there belongs to nobody
    return delta if grad_lse is None else delta - grad_lse.masked_fill(lse == -torch.inf, 0)


def backward(
    grad_out: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    lists: Lists,
    scale: float,
    bias: Sequence[Bias] = (),
    found: Sequence[Sequence[Tensor]] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output and its :func:`row_term`; those of the tables of biases are added
    to ``found``. With few key heads and many queries a head's queries are shared out, and what the shares found is
    added in a fixed order: results are the same bit for bit, whatever the number of threads."""
    dim, dtype, kind = q.shape[-1], q.dtype, _kind(lists, q)
    group = q.shape[2] // k.shape[2]
    lse = (lse * log2(e)).masked_fill_(lse == -torch.inf, torch.inf)
    lse, delta = (torch.nn.functional.pad(x, (0, QUERIES)) for x in (lse, delta))
    q, k, v, grad_out = (_padded(x, kind) for x in (q, k, v, grad_out))
    if not lists.tiles:
        q, grad_out = q.float(), grad_out.float()
    d_q = _results(lists, q)
    d_k, d_v = (torch.empty(x.shape, dtype=x.dtype) for x in (k, v))
    common = {**_common(lists, scale, q=q, d_out=grad_out, d_q=d_q), "factor": scale}
    name = "backward anywhere" if lists.anywhere else "backward with bias" if bias else "backward"
    work, tiles = Batch(_kernel(name, kind, q.shape[-1], lists.unit)), BiasTiles(bias, lists, scale, found)
    sources = [(k, False), (v, False), *([(k, True)] if lists.tiles else [])]
    shares = min(-(-_SHARES // k.shape[2]), max(1, q.shape[1] // _SHARED_QUERIES))
    for entry, low, keys, values, *turned in _laid_out(lists, work.threads, q.dtype, *sources):
        [turned] = turned or [keys]
        sums = torch.zeros(2, len(keys), shares, *keys.shape[1:])
        chains = _Chains(work, len(keys) * shares)
        for at, head in product(range(len(keys)), range(group)):
            head += (low + at) * group
            own = {**common, "k": keys[at], "v": values[at], "turned": turned[at]}
            share = 0
            for part in lists.visits(entry, head):
                rows = slice(part.first * lists.block, None)
                own.update(
                    q=q[entry, rows, head],
                    d_out=grad_out[entry, rows, head],
                    d_q=d_q[entry, rows, head],
                    lse=lse[entry, head, rows],
                    delta=delta[entry, head, rows],
                    visits=part,
                    **part.tables,
                )
                for piece in part.pieces(shares):
                    own.update(d_k=sums[0, at, share], d_v=sums[1, at, share])
                    for call in tiles.calls(part, *piece, entry, head):
                        chains.append(at * shares + share, {**own, **call})
                        if tiles.full:
                            chains.run()
                            tiles.collect()
                    share = (share + 1) % shares
        chains.run()
        tiles.collect()
        for into, total, factor in ((d_k, sums[0], scale), (d_v, sums[1], 1.0)):
            into[entry, :, low : low + len(keys)] = lists.collect(total.sum(1).mul_(factor)).transpose(0, 1)
    if lists.anywhere:
        d_q *= scale
    return tuple(_narrow(x, dim, dtype) for x in (d_q, d_k, d_v))


class _Chains:
    """A number of chains of calls, which go on where they were when some have run."""

    def __init__(self, work: Batch, count: int):
        self._work, self._calls = work, [[] for _ in range(count)]

    def append(self, chain: int, call: Values) -> None:
        self._calls[chain].append(call)

    def run(self) -> None:
        for calls in self._calls:
            self._work.add(*calls)
            calls.clear()
        self._work.run()


def _kind(lists: Lists, q: Tensor) -> str:
    return kinds.TILES if lists.tiles else kinds.kind_for(q.dtype, q.shape[-1])


def _results(lists: Lists, q: Tensor) -> Tensor:
    """Memory for a result of every query."""
    dtype = torch.float32 if lists.anywhere else q.dtype
    return torch.empty(q.shape, dtype=dtype) if lists.covers else torch.zeros(q.shape, dtype=dtype)


def _pieces(threads: int, heads: int) -> int:
    """Pieces to cut a head's queries into, so that no thread waits long for the last one."""
    return 1 if threads == 1 else -(-_PIECES * threads // heads)


def _common(lists: Lists, scale: float, **rows: Tensor) -> dict[str, int | float]:
    """Arguments that all calls share; ``rows`` are (B, N, H, D)."""
    strides = {f"{name}_stride": x.element_size() * x.stride(1) for name, x in rows.items()}
    return {**strides, "block": lists.block, "halves": lists.halves, "unit": lists.unit, "scale": scale * log2(e)}


def _padded(x: Tensor, kind: str) -> Tensor:
    """x (B, N, H, D) with its channels side by side, and zeros up to what the kernels want."""
    missing = -x.shape[-1] % kinds.CHANNELS.get(kind, 16)
    return torch.nn.functional.pad(x, (0, missing)) if missing else unit_rows(x)


def _narrow(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Undo :func:`_padded` and widening."""
    return x.to(dtype) if x.shape[-1] == dim else x[..., :dim].to(dtype).contiguous()


def _laid_out(lists: Lists, threads: int, dtype: torch.dtype, *sources: tuple[Tensor, bool]) -> Iterator[tuple]:
    """Key heads, as many together as fit: batch entry, first head, and of every source (B, Nk, Hk, D) these heads one
    after the other in slots: (heads, slots, D), or where it is to be turned (heads, slots / 32, D, 32). The next ones
    overwrite them."""
    batch, _, heads, dim = sources[0][0].shape
    fit = max(1, _SET_BYTES * threads // (dtype.itemsize * len(sources) * lists.slots * dim))
    together = -(-heads // -(-heads // fit))
    copies = [torch.zeros(together, lists.slots, dim, dtype=dtype) for _ in sources]
    for entry in range(batch):
        for low in range(0, heads, together):
            count = min(together, heads - low)
            found = []
            for (x, turn), copy in zip(sources, copies, strict=True):
                here = copy[:count]
                lists.place(x[entry, :, low : low + count].transpose(0, 1), here)
                found.append(here.unflatten(1, (-1, HALF)).transpose(2, 3).contiguous() if turn else here)
            yield entry, low, *found
