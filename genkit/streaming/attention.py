"""The method a stream puts into the gate: a chunk attends to the cached frames of its window and to itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.block_lists import Budget, Kept
from genkit.kernels.scores.pool import pool_blocks
from genkit.streaming.cache import RollingCache, rotate
from genkit.streaming.state import TemporalState

BLOCK = 64


@dataclass
class StreamCall:
    """What changes from call to call of the denoiser.

    Args:
        cache: of the branch that is running; None between chunks.
        write: whether this is the clean pass, whose keys and values are kept.
        served: attention calls of this chunk.
    """

    cache: RollingCache | None = None
    write: bool = False
    served: int = 0


@dataclass(frozen=True, eq=False)
class StreamAttention(Method):
    """Self-attention of a chunk over the window of its stream. Queries and keys come before rotation, see
    :func:`genkit.patching.unrotated`.

    Args:
        call: what changes from call to call; the stream sets it.
        keep: share of the window's key blocks that every block of queries reads, the best by the product of block
            means; 1 = all, dense. No block is forced.
        state: reads what the cache remembers of frames that left; None for a stream without one.

    Source: Hybrid Forcing, arXiv 2604.10103 (blocks of 64 tokens, 0.2 kept).
    """

    call: StreamCall = field(default_factory=StreamCall, repr=False)
    keep: float = 1.0
    state: TemporalState | None = field(default=None, repr=False)

    name: ClassVar[str] = "stream"
    roles: ClassVar[tuple[str, ...]] = ("self",)
    exact: ClassVar[bool] = True
    source: ClassVar[str] = "Hybrid Forcing, arXiv 2604.10103"

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1:
            raise UsageError(explain("keep of a stream", self.keep, "a share of the key blocks above 0, at most 1"))

    def settings(self) -> dict[str, Any]:
        """See :meth:`Method.settings`."""
        return {"keep": self.keep}

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, cache: PatchCache) -> torch.Tensor:
        """See :meth:`Method.attend`; (B, N, H, D) of the chunk."""
        call = self.call
        if call.cache is None:
            raise UnsupportedError(f"layer {site.name}: a stream's attention runs inside its chunks only")
        turned = rotate(q, call.cache.rotary)
        keys, values = call.cache.seen(site.name, k, v, call.write)
        call.served += 1
        out = self._window(turned, keys, values, site, cache)
        if self.state is not None and call.cache.memory is not None:
            past = self.state.read(call.cache.memory, site.name, q, turned)
            out = out if past is None else out + past.to(out.dtype)
        return out

    def _window(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, site: Site, cache: PatchCache
    ) -> torch.Tensor:
        """Softmax attention over the window."""
        if self.keep < 1:
            plan = best_blocks(q, keys, self.keep)
            return block_sparse_attention(q, keys, values, plan, scale=site.scale, backend=cache.backend)[0]
        q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
        return scaled_dot_product_attention(q, keys, values, scale=site.scale).transpose(1, 2)


def best_blocks(q: torch.Tensor, k: torch.Tensor, keep: float) -> BlockPlan:
    """The plan of the best key blocks of every block of queries, by the product of block means.

    Args:
        q: (B, Nq, H, D). k: (B, Nk, H, D).
        keep: share of the key blocks, rounded down, at least one.
    """
    scores = torch.einsum("bmhd,bnhd->bhmn", *(pool_blocks(x, BLOCK) for x in (q, k)))
    budget = Budget(keep=max(1, int(keep * scores.shape[-1])))
    kept = Kept.nothing(*scores.shape[-2:]).to(q.device)
    return BlockPlan.from_scores(
        scores, budget, kept, q.shape[1], k.shape[1], block_q=BLOCK, block_k=BLOCK, key_order=None
    )
