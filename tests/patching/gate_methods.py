"""Attention methods whose results are known, to test the gate with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as functional

from genkit.attention.method import Density, Method
from genkit.attention.site import ROLES


def dense(q, k, v, site):
    """Full attention of (B, N, H, D) tensors by softmax, independent of any attention function."""
    scale = site.scale if site.scale is not None else q.shape[-1] ** -0.5
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if site.key_mask is not None:
        logits = logits.masked_fill(~site.key_mask[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)


@dataclass(frozen=True)
class Full(Method):
    """Full attention, so that a patched model must give what the unpatched one gives."""

    name = "full"
    roles = ROLES
    needs_grid = False
    exact = True
    heads_apart = True

    @property
    def hides_grid(self):
        return True

    def attend(self, q, k, v, site, cache):
        return dense(q, k, v, site)

    def density(self, site, cache):
        return Density(1.0, 1.0)


@dataclass(frozen=True)
class Scaled(Full):
    """Full attention times a factor: shows where a method ran."""

    name = "scaled"
    factor: float = 0.5

    def attend(self, q, k, v, site, cache):
        return dense(q, k, v, site) * self.factor


@dataclass(frozen=True)
class Sdpa(Full):
    """Full attention through the very function that is wrapped."""

    name = "sdpa"

    def attend(self, q, k, v, site, cache):
        assert site.key_mask is None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, scale=site.scale).transpose(1, 2)


@dataclass(frozen=True)
class Declining(Full):
    """Declines every call."""

    name = "declining"

    def attend(self, q, k, v, site, cache):
        return None


@dataclass(frozen=True)
class Failing(Full):
    """Raises at every call; ``error`` is the exception class."""

    name = "failing"
    error: type[BaseException] = ValueError

    def attend(self, q, k, v, site, cache):
        raise self.error("on purpose")


@dataclass(frozen=True)
class GridOnly(Full):
    """Self-attention with a grid only."""

    name = "grid_only"
    roles = ("self",)
    needs_grid = True


@dataclass(frozen=True, eq=False)
class Recorder(Full):
    """Full attention that keeps what it saw: (site, keys) per call."""

    name = "recorder"
    seen: list[Any] = field(default_factory=list)

    def attend(self, q, k, v, site, cache):
        self.seen.append((site, k.detach().clone()))
        return dense(q, k, v, site)
