"""The first-step check: is what a method computes near dense attention, on a sample of queries, where it first acts?"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from genkit.errors import GenkitError, UsageError, explain

if TYPE_CHECKING:
    from genkit.patching.interception import Call

#: Relative error from which a site is told: what is left of the output is then hardly dense attention's.
WARN = 0.7
QUERIES = 32


class TooFarError(GenkitError):
    """A method's output is further from dense attention than the check allows."""


@dataclass(frozen=True)
class Check:
    """How :func:`genkit.patch` compares every patched site with dense attention, once, at the first call it serves.

    The error of a site is |method - dense| / |dense| (Euclidean norms) over a sample of queries, all rows of the batch
    and all covered heads. The dense side is the model's own attention for these queries, its mask included: a
    (queries x keys) strip, never a map of all pairs.

    Args:
        warn: sites with a larger error are told, by a warning and in ``report()``.
        refuse: a site with a larger error raises :class:`TooFarError`; None never refuses.
        queries: size of the sample. Cost: ``queries / tokens`` of one dense call, once a site.

    Methods that add to the attention (a reference, an IP adapter) have no dense counterpart and are not compared. For
    a method that weights were trained through, the distance to dense attention says nothing about quality.

    Raises:
        UsageError: numbers out of range.
    """

    warn: float = WARN
    refuse: float | None = None
    queries: int = QUERIES

    def __post_init__(self) -> None:
        for name, value in (("warn", self.warn), ("refuse", self.refuse)):
            if name == "refuse" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise UsageError(explain(f"{name} of the first-step check", value, "a number above 0"))
        if isinstance(self.queries, bool) or not isinstance(self.queries, int) or self.queries < 1:
            raise UsageError(explain("queries of the first-step check", self.queries, "a whole number from 1"))


def as_check(value: Any) -> Check | None:
    """What ``check=`` of :func:`genkit.patch` means: True warns, a number refuses above it, False and None do nothing.

    Raises:
        UsageError: anything else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Check()
    if isinstance(value, Check):
        return value
    if isinstance(value, (int, float)):
        return Check(warn=min(WARN, float(value)) if value > 0 else WARN, refuse=float(value))
    raise UsageError(explain("check", value, "True, False, a number (the largest relative error) or genkit.Check(...)"))


@dataclass(frozen=True)
class Checked:
    """One site's comparison with dense attention.

    Args:
        site, method: which.
        step: sampling step of the compared call, None outside of a loop.
        error: relative error over the sample; inf when the method's output is not finite.
        worst_head: the covered head with the largest error, and that error.
        queries: how many were compared.
    """

    site: str
    method: str
    step: int | None
    error: float
    worst_head: tuple[int, float]
    queries: int

    def __str__(self) -> str:
        when = "" if self.step is None else f" at step {self.step}"
        head, most = self.worst_head
        return (
            f"layer {self.site}: {self.method} is {self.error:.2f} from dense attention{when} (relative error over "
            f"{self.queries} queries; head {head} is worst with {most:.2f})"
        )


def compare(
    check: Check, name: str, method: str, step: int | None, heads: tuple[int, ...] | None, q: torch.Tensor,
    k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, call: Call,
) -> Checked:  # fmt: skip
    """Compare a served call with the model's own attention, warn or refuse.

    Args:
        heads: the covered ones, None = all.
        q, k, v, out: (B, N, H, D) of the call and the method's output.

    Raises:
        TooFarError: the error is above ``check.refuse``.
    """
    rows = sample(q.shape[1], check.queries).to(q.device)
    with torch.no_grad():
        mask = call.mask
        asked = q.detach().index_select(1, rows)
        if isinstance(mask, torch.Tensor) and mask.ndim >= 2 and mask.shape[-2] == q.shape[1]:
            dense = call.own(asked, k.detach(), v.detach(), attn_mask=mask.index_select(-2, rows.to(mask.device)))
        else:
            dense = call.own(asked, k.detach(), v.detach())
        apart = (out.detach().index_select(1, rows).float() - dense.float()).square().sum((0, 1, 3))
        whole = dense.float().square().sum((0, 1, 3))
        if heads is not None:
            apart, whole = apart[list(heads)], whole[list(heads)]
        each = (apart / whole.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
        error = float((apart.sum() / whole.sum().clamp_min(torch.finfo(torch.float32).tiny)).sqrt())
        head = int(torch.nan_to_num(each, nan=math.inf).argmax())
        most = float(each[head])
    error, most = (value if math.isfinite(value) else math.inf for value in (error, most))
    found = Checked(name, method, step, error, (head if heads is None else heads[head], most), len(rows))
    if check.refuse is not None and error > check.refuse:
        raise TooFarError(
            f"{found}; at most {check.refuse:g} is allowed: take a denser setting, leave this layer or the first steps "
            f"out of the schedule, or allow more"
        )
    if error > check.warn:
        warnings.warn(f"{found}; above {check.warn:g}", stacklevel=2)
    return found


def sample(tokens: int, most: int) -> torch.Tensor:
    """Indices of at most ``most`` tokens, one from each of equal stretches, the same at every call."""
    if tokens <= most:
        return torch.arange(tokens)
    edges = torch.linspace(0, tokens, most + 1, dtype=torch.float64)
    inside = torch.rand(most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (edges[:-1] + inside * edges.diff()).long().clamp_(max=tokens - 1)


def remarks(found: list[Checked], check: Check | None) -> list[str]:
    """What a report says about sites that are far from dense attention: one line."""
    if check is None:
        return []
    far = sorted((each for each in found if each.error > check.warn), key=lambda each: -each.error)
    if not far:
        return []
    others = f"; {len(far) - 1} more of {len(found)} sites are above {check.warn:g}" if len(far) > 1 else ""
    return [f"first-step check: {far[0]}{others}"]
