"""BroadWay's mathematics of one call: maps F x F of some places at a time, never those of all places at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_ENTRIES = 1 << 22  # numbers of maps in memory at a time: 16 MiB in float32


def widest(frames: int) -> int:
    """The largest half width of the band of high frequencies that leaves the constant term out."""
    return (frames - 1) // 2


def high_pass(frames: int, width: int) -> torch.Tensor:
    """Projection of rows of maps onto the high frequencies of the key axis, (F, F) float64, symmetric.

    Args:
        frames: F.
        width: half width tau: frequencies ``ceil(F / 2) - tau`` to ``F // 2 + tau``; those of even F as published, of
            odd F mirrored too, so that rows stay real. At :func:`widest` it is ``I - 1 / F``: all but the constant.
    """
    low, high = -(-frames // 2) - width, frames // 2 + width
    bins = torch.arange(frames)
    kept = ((bins >= max(low, 1)) & (bins <= min(high, frames - 1))).double()
    turn = 2 * math.pi / frames * (bins[:, None] - bins[None]).double()
    return (torch.cos(turn[..., None] * bins) * kept).sum(-1) / frames


@dataclass(frozen=True)
class Finer:
    """Bilinear resizing of a small picture of places to a larger one, as four neighbours and their weights.

    Attributes:
        index: (h * w, 4) int64, places of the small picture. weight: (h * w, 4) float64, rows sum to 1.
        coarse: number of places of the small picture.
    """

    index: torch.Tensor
    weight: torch.Tensor
    coarse: int

    @classmethod
    def of(cls, small: tuple[int, int], large: tuple[int, int]) -> Finer:
        """From (h1, w1) to (h, w); centres of pixels as in ``interpolate(mode="bilinear", align_corners=False)``."""
        (rows, down), (columns, right) = (_axis(*sides) for sides in zip(small, large, strict=True))
        index = rows[:, None, :, None] * small[1] + columns[None, :, None, :]
        weight = down[:, None, :, None] * right[None, :, None, :]
        return cls(index.reshape(-1, 4), weight.reshape(-1, 4), small[0] * small[1])

    def to(self, device: torch.device) -> Finer:
        """The same on ``device``."""
        return Finer(self.index.to(device), self.weight.to(device), self.coarse)


def _axis(small: int, large: int) -> tuple[torch.Tensor, torch.Tensor]:
    at = ((torch.arange(large).double() + 0.5) * small / large - 0.5).clamp(min=0)
    first = at.floor().long().clamp(max=small - 1)
    share = (at - first).clamp(0, 1)
    return torch.stack([first, (first + 1).clamp(max=small - 1)], -1), torch.stack([1 - share, share], -1)


@dataclass(frozen=True)
class Guide:
    """Maps of the corresponding call of the coarser block.

    Args:
        maps: (B * h1 * w1, H, F, F), or with one head for all.
        finer: from (h1, w1) to this call's places.
    """

    maps: torch.Tensor
    finer: Finer

    def at(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """The maps of places ``start`` to ``stop`` of the finer picture, all rows of the batch in one run."""
        places = len(self.finer.index)
        at = torch.arange(start, stop, device=self.maps.device)
        index = self.finer.index[at % places] + (at // places * self.finer.coarse)[:, None]
        weight = self.finer.weight[at % places].to(dtype)
        found = self.maps[index[:, 0]].to(dtype) * weight[:, 0, None, None, None]
        for i in range(1, 4):
            found = found + self.maps[index[:, i]].to(dtype) * weight[:, i, None, None, None]
        return found


@dataclass(frozen=True)
class Outcome:
    """What a call gives.

    Args:
        out: (P, F, H, D). gain: scalar, the factor of the high frequencies that was used. maps: (P, H, F, F) as the
            softmax made them, or None unless asked for.
    """

    out: torch.Tensor
    gain: torch.Tensor
    maps: torch.Tensor | None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    high: torch.Tensor,
    alpha: float,
    beta: float,
    guide: Guide | None = None,
    energies_from: int = 0,
    keep: bool = False,
) -> Outcome:
    """Temporal attention with self-guidance and amplified high frequencies.

    The map A becomes ``M = A + alpha (G - A)``, then ``M + (b - 1) M high``, and so does the output. The scalar b is
    known after the energies of all places, and the output is linear in it, so one pass over the places will do.

    Args:
        q, k, v: (P, F, H, D), P places of all rows of the batch.
        scale: softmax scale.
        high: (F, F) of :func:`high_pass`, float32 or float64.
        alpha, beta: strength of the guidance, least gain of high frequencies.
        guide: G; None leaves ``M = A``.
        energies_from: the first place whose map counts for energies.
        keep: whether to return the maps.
    """
    places, frames, heads, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    high, run = high.to(dtype), max(1, _ENTRIES // (heads * frames * frames))
    sums = torch.zeros(3, dtype=torch.float64, device=q.device)
    plain, rough, maps = [], [], []
    for start in range(0, places, run):
        part = slice(start, min(start + run, places))
        a = torch.einsum("pqhd,pkhd->phqk", q[part].to(dtype) * scale, k[part].to(dtype)).softmax(-1)
        if keep:
            maps.append(a.to(q.dtype))
        m = a if guide is None else a + alpha * (guide.at(part.start, part.stop, dtype) - a)
        rapid, value = m @ high, v[part].to(dtype)
        counted = slice(max(0, energies_from - start), None)
        sums = sums + torch.stack([(x[counted].double() ** 2).sum() for x in (a, rapid, m - rapid)])
        plain.append(torch.einsum("phqk,pkhd->pqhd", m, value))
        rough.append(torch.einsum("phqk,pkhd->pqhd", rapid, value))
    gain = _gain(sums, beta).to(dtype)
    out = torch.cat(plain) + (gain - 1) * torch.cat(rough)
    return Outcome(out.to(v.dtype), gain, torch.cat(maps) if keep else None)


def _gain(sums: torch.Tensor, beta: float) -> torch.Tensor:
    """``max(beta, beta_c)``: with beta_c the guided map has the energy it had before. From sums of squares of the map,
    and of the high and the low part of the guided one."""
    before, rapid, slow = sums.unbind()
    square = torch.full_like(rapid, float(beta) ** 2)
    # Uniform rows have no high frequencies to amplify. The root is never taken of 0, whose slope is infinite.
    wanted = torch.where(rapid > 0, (before - slow) / rapid.clamp(min=torch.finfo(rapid.dtype).tiny), square)
    return torch.maximum(square, wanted).sqrt()


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    width: int,
    alpha: float,
    beta: float,
    guide: torch.Tensor | None = None,
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
    energies_from: int = 0,
) -> Outcome:
    """:func:`attend` as the paper writes it: all maps, ``interpolate``, a Fourier transform along the keys, its
    inverse, and rows divided by their sums. The specification; for tests.

    Args:
        width: half width tau, clamped to :func:`widest`.
        guide: (B * h1 * w1, H, F, F). sizes: ((h1, w1), (h, w)).
    """
    a = torch.einsum("pqhd,pkhd->phqk", q * scale, k).softmax(-1)
    m, (_, heads, frames, _) = a, a.shape
    if guide is not None and sizes is not None:
        small, large = sizes
        coarse = guide.unflatten(0, (-1, *small)).permute(0, 3, 4, 5, 1, 2).flatten(1, 3)
        fine = torch.nn.functional.interpolate(coarse, size=large, mode="bilinear", align_corners=False)
        fine = fine.unflatten(1, (heads, frames, frames)).permute(0, 4, 5, 1, 2, 3).flatten(0, 2)
        m = a + alpha * (fine - a)
    spectrum = torch.fft.fft(m, dim=-1)
    width = min(width, widest(frames))
    inside = torch.zeros(frames, dtype=torch.bool)
    inside[-(-frames // 2) - width : frames // 2 + width + 1] = True
    before = (a[energies_from:] ** 2).sum(-1).mean()
    power = spectrum[energies_from:].abs().square() / frames
    rapid, slow = power[..., inside].sum(-1).mean(), power[..., ~inside].sum(-1).mean()
    gain = torch.as_tensor(float(beta), dtype=a.dtype)
    if rapid > 0 and before > slow:
        gain = torch.maximum(gain, ((before - slow) / rapid).sqrt())
    new = torch.fft.ifft(torch.where(inside, gain * spectrum, spectrum), dim=-1).real
    new = new / new.sum(-1, keepdim=True)
    return Outcome(torch.einsum("phqk,pkhd->pqhd", new, v), gain, new)
