"""What reference attention keeps on a patch: recorded keys and values, strengths, boxes, and the weights of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from genkit.attention.batch_rows import spread
from genkit.attention.cache import PatchCache
from genkit.attention.reference.masks import Box, blended_mask, box_mask, grid_mask
from genkit.attention.site import Place, Site
from genkit.attention.weights import draw, like
from genkit.errors import GenkitError, UnsupportedError, UsageError, explain

NAME = "reference"
#: Pixels per side of a cell that boxes are drawn on, finer than the tokens of any model; layers average them.
_CELL = 8
Pair = tuple[torch.Tensor, torch.Tensor]


class Recorded:
    """Keys and values of one reference, per layer.

    Attributes:
        pairs: layer name -> (keys, values), (b, Lr, Hk, D) after the model's normalisation and rotation.
        strength: factor of its share. mask: (T, H, W) of its own picture or None; keys outside are not kept.
    """

    def __init__(self, strength: float, mask: torch.Tensor | None):
        self.pairs: dict[str, Pair] = {}
        self.strength = strength
        self.mask = mask

    def keep(self, site: Site, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store a layer; with a mask only the tokens at least half inside it (or, without any, the nearest to it)."""
        if self.mask is not None:
            share = grid_mask(self.mask, site.layout.grid)[0]
            inside = (share >= min(0.5, float(share.max()))).nonzero().flatten().to(k.device)
            k, v = k.index_select(1, inside), v.index_select(1, inside)
        self.pairs[site.name] = (k, v)


class References:
    """The references of one patch: record them, weigh them, say where they apply.

    ``References.of(patch.cache)`` belongs to the patch and dies with it. A reference runs once through the model
    itself, before the first step: the model never shows it the picture that is being made, so its keys and values serve
    every step and both halves of guidance.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Recorded] = {}
        self.recording: Recorded | None = None
        self.adapted: set[str] = set()
        self._boxes: torch.Tensor | None = None
        self._blended: dict[Any, torch.Tensor] = {}
        self._parts: tuple[float, ...] = ()
        self._off = False

    @staticmethod
    def of(cache: PatchCache) -> References:
        """The references that belong to a patch, made on first use."""
        return cache.get("references", References)

    def record(
        self,
        patch: Any,
        model: Callable[..., Any],
        name: str = "reference",
        *,
        strength: float = 1.0,
        mask: torch.Tensor | None = None,
        **inputs: Any,
    ) -> int:
        """Run a reference through the patched model and keep its keys and values under a name.

        Args:
            patch: the handle of the patch (for its cache).
            model: the patched denoiser, called with ``inputs``: its forward arguments with the reference's clean
                latents in place of the noisy ones and a timestep of 0. Positions are those the model gives them:
                right for a control that matches the picture place by place; for a subject move them in time
                (``genkit.patching.time_shift``, or the model's own coordinate arguments).
            name: recording again under the same name replaces.
            strength: factor of this reference's share, 0 = as if absent.
            mask: (T, H, W) or (H, W) foreground of the reference, 1 = use; any resolution.

        Returns:
            Number of layers recorded. With gradients enabled the trainable weights stay connected.

        Raises:
            UnsupportedError: gradients wanted under activation checkpointing, which would recompute the pass in
            another state. GenkitError: the call reached no layer of the patch.
        """
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or strength < 0:
            raise UsageError(explain("strength", strength, "a number >= 0"))
        if torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False):
            raise UnsupportedError(
                "a reference cannot be recorded with gradients under activation checkpointing: recompute would find "
                "another state; disable checkpointing for this call or record inside torch.no_grad()"
            )
        if mask is not None and mask.dim() == 2:
            mask = mask[None]
        cache = patch.cache
        entry = Recorded(float(strength), mask)
        before = cache.aside
        cache.aside, self.recording = NAME, entry
        self.adapted.clear()
        try:
            model(**inputs)
        finally:
            cache.aside, self.recording = before, None
        if not entry.pairs:
            raise GenkitError("nothing was recorded: the call reached no layer of this patch; call the patched model")
        self.entries[name] = entry
        return len(entry.pairs)

    def forget(self, name: str | None = None) -> None:
        """Drop one reference, or all."""
        if name is None:
            self.entries.clear()
        elif self.entries.pop(name, None) is None:
            raise UsageError(explain("reference", name, list(self.entries)))

    def set_strength(self, name: str, strength: float) -> None:
        """Weigh a recorded reference anew."""
        if name not in self.entries:
            raise UsageError(explain("reference", name, list(self.entries)))
        self.entries[name].strength = float(strength)

    def set_boxes(self, mask: torch.Tensor | None) -> None:
        """Where in the picture references apply: (T', H', W') or (B, T', H', W'), 1 inside; None = everywhere.

        Any resolution, see :func:`genkit.attention.reference.masks.box_mask`. Outside, the method's ``outside`` holds.
        """
        if mask is not None:
            grid_mask(mask, (1, 1, 1))  # refuses a wrong shape now, not in the middle of a run
        self._boxes = mask
        self._blended.clear()

    def follow(self, boxes: Sequence[Sequence[Box | None]] | None, height: int, width: int) -> None:
        """Apply references in boxes of every frame, see :meth:`set_boxes`.

        Args:
            boxes: per row of the batch, or one row for all: per frame (left, top, right, bottom) as shares of the
                picture, or None for a frame without. None instead of rows = everywhere.
            height, width: of the picture in pixels.
        """
        cells = (height // _CELL, width // _CELL)
        self.set_boxes(None if boxes is None else torch.stack([box_mask(row, *cells) for row in boxes]))

    def set_parts(self, weights: Sequence[float]) -> None:
        """How much equal parts of the batch read references, in order; none given = all of them fully.

        For models that are called once with both halves of guidance: ``(0, 1)`` after Stable Diffusion's order leaves
        the negative half without, so that guidance acts on the references too.

        Raises:
            UsageError: a weight below 0.
        """
        for weight in weights:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
                raise UsageError(explain("weights of parts", weight, "numbers >= 0"))
        self._parts = tuple(float(weight) for weight in weights)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside run without references, for guidance."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def at(self, site: str) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """(keys, values, strength) of every reference a layer has, those of strength 0 left out."""
        if self._off:
            return []
        found = [(entry.pairs.get(site), entry.strength) for entry in self.entries.values()]
        return [(*pair, strength) for pair, strength in found if pair is not None and strength > 0]

    def share(self, site: Site, outside: float, batch: int, like: torch.Tensor) -> torch.Tensor | None:
        """How much (B|1, T*H*W) a layer's grid tokens read, by boxes and parts of the batch; None = all fully."""
        found = None
        if self._boxes is not None:
            key = (site.layout.grid, outside, like.device, like.dtype)
            if key not in self._blended:
                mask = blended_mask(grid_mask(self._boxes, site.layout.grid), outside)
                self._blended[key] = mask.to(like.device, like.dtype)
            found = spread(self._blended[key], batch, "boxes")
        if not self._parts:
            return found
        if batch % len(self._parts):
            raise UsageError(
                f"layer {site.name}: a batch of {batch} rows has no {len(self._parts)} equal parts; give "
                f"References.set_parts as many weights as the call has halves of guidance"
            )
        weights = torch.tensor(self._parts, device=like.device, dtype=like.dtype)
        weights = weights.repeat_interleave(batch // len(self._parts))[:, None]
        return weights if found is None else weights * found


class LowRank(nn.Module):
    """A change of a projection: ``x -> x A^T B^T`` of some rank, or ``x -> x D^T`` of full rank; zero at the start."""

    def __init__(self, wide: int, out: int, rank: int | str, seed: int, **kind: Any):
        super().__init__()
        if rank == "full":
            self.change = nn.Parameter(torch.zeros(out, wide, **kind))
        else:
            self.down = draw((rank, wide), wide**-0.5, seed, **kind)
            self.up = nn.Parameter(torch.zeros(out, rank, **kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., wide) -> (..., out)"""
        tables = [table.to(x.device, x.dtype) for table in self.parameters()]
        for table in tables:
            x = torch.nn.functional.linear(x, table)
        return x


class LayerWeights(nn.Module):
    """Trainable weights of reference attention at one layer: the zero projection and the changes of q, k, v."""

    def __init__(self, place: Place, rank: int | str, seed: int):
        super().__init__()
        parts = {name: getattr(place.projections, name) for name in ("q", "k", "v")}
        if any(part is None for part in parts.values()):
            raise UnsupportedError(
                f"layer {place.name}: reference with form='residual' follows the projections "
                f"{', '.join(place.projections.names)}, which {type(place.module).__name__} lacks; use form='append'"
            )
        width = parts["q"].out_features
        kind = like(parts["q"])
        self.out = nn.Linear(width, width, **kind)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.changes = nn.ModuleDict()
        if rank:
            for number, (name, part) in enumerate(parts.items()):
                own = seed * 1_000_003 + place.layer * 3 + number
                self.changes[name] = LowRank(part.in_features, part.out_features, rank, own, **kind)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The zero-initialised projection of (B, N, H, D), heads merged."""
        weight, bias = (table.to(x.device, x.dtype) for table in (self.out.weight, self.out.bias))
        return torch.nn.functional.linear(x.flatten(2), weight, bias).view(x.shape)
