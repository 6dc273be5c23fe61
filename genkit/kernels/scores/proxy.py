"""Scores that several heads share: one query and one key of a whole group of heads, token by token (ProxyAttn)."""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.errors import UsageError
from genkit.kernels.scores.estimate import _match_heads, block_mass, pooled_scores

#: Heads whose pooled maps agree less than this with those of their group's leader keep their own ranking.
AGREEMENT = 0.8


@torch.no_grad()
def proxy_scores(
    q: Tensor,
    k: Tensor,
    block_q: int,
    block_k: int,
    *,
    groups: int = 1,
    agreement: float | None = AGREEMENT,
    scale: float | None = None,
) -> Tensor:
    """Mass of every block pair from the mean query and the mean key of a group of heads, for all heads of the group.

    Heads look at similar tokens and differ in how sparse they are. Means over heads hold products of one head's query
    with another head's key, so only heads whose pooled maps agree are put together: leaders are chosen one by one, each
    the head that is least like those chosen before, and every head joins the leader it is most like.

    Args:
        q, k: (B, Nq, H, D), (B, Nk, Hk, D).
        block_q, block_k: tokens per block.
        groups: of heads, 1 to H; H = every head for itself. Cost is groups / (2 H) of dense attention.
        agreement: least cosine of a head's pooled map with its leader's; a head below it is ranked by its own pooled
            map. None = every head follows its group.
        scale: softmax scale, default 1/sqrt(D).

    Returns:
        (B, H, Mq, Mk) float32, rows sum to 1.

    Source: ProxyAttn: Guided Sparse Attention via Representative Heads. The choice of groups and the reduction over a
    block are this project's; the paper's code was not at hand.
    """
    heads = q.shape[2]
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= heads:
        raise UsageError(f"groups must be a whole number from 1 to the {heads} heads, got {groups}")
    k = _match_heads(k, heads)
    own = pooled_scores(q, k, block_q, block_k, scale=scale)
    label, likeness = _grouped_heads(own, groups)
    member = torch.nn.functional.one_hot(label, groups).to(torch.promote_types(q.dtype, torch.float32))
    share = member / member.sum(1, keepdim=True).clamp(min=1)
    mean_q, mean_k = (torch.einsum("bnhd,bhg->bngd", x.to(share.dtype), share) for x in (q, k))
    mass = block_mass(mean_q, mean_k, block_q, block_k, scale=scale)
    followed = mass.float().gather(1, label[:, :, None, None].expand(-1, -1, *mass.shape[2:]))
    if agreement is None:
        return followed
    return torch.where((likeness >= agreement)[:, :, None, None], followed, own)


def _grouped_heads(maps: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """For maps (B, H, Mq, Mk): the group of every head (B, H) int64, and its cosine with the group's leader."""
    flat = torch.nn.functional.normalize(maps.flatten(2).double(), dim=-1)
    alike = flat @ flat.transpose(1, 2)
    leaders = [torch.zeros(len(maps), dtype=torch.int64, device=maps.device)]
    for _ in range(1, groups):
        nearest = _columns(alike, leaders).amax(-1)
        # a leader is not chosen twice, even where all maps are equal
        taken = torch.nn.functional.one_hot(torch.stack(leaders, 1), maps.shape[1]).sum(1)
        leaders.append((nearest + 4 * taken).argmin(-1))
    likeness, label = _columns(alike, leaders).max(-1)
    return label, likeness


def _columns(alike: Tensor, leaders: list[Tensor]) -> Tensor:
    chosen = torch.stack(leaders, 1)[:, None].expand(-1, alike.shape[1], -1)
    return alike.gather(-1, chosen)
