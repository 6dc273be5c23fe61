"""What is known about the running call of one denoiser: token layouts, step, branch, masks already read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from genkit.errors import UnsupportedError
from genkit.families.base import Family, Streams
from genkit.layout import GRID, Segment, TokenLayout
from genkit.patching.masks import NO_MASK, MaskView, view_mask
from genkit.patching.positions import TimeAngles
from genkit.patching.step_tracker import Moment
from genkit.patching.ulysses import split_inputs

if TYPE_CHECKING:
    from collections.abc import Hashable


class CallState:
    """The latest call of one denoiser; its patched layers read it.

    It stays until the next call, so that activation checkpointing finds it again when it recomputes during backward,
    on whatever thread.

    Args:
        family: the denoiser's record.
    """

    def __init__(self, family: Family):
        self.family = family
        #: The token streams; the same object as long as calls tell the same.
        self.streams: Streams = {}
        #: The largest token grid of the running call that attention sees; None when no stream has one.
        self.finest: tuple[int, int, int] | None = None
        self.tiles: dict[str, tuple[int, int, int]] = {}
        #: How the model turns channels along time, where that follows from the latents' shape.
        self.angles: TimeAngles | None = None
        #: Diffusers' parallel configuration of the model, or None, and the arguments it splits over processes.
        self.parallel: Any = None
        self.split_inputs: frozenset[str] = frozenset()
        self.forwards = 0
        self.run: int | None = None
        self.run_forwards = 0  # of the latest sampling run
        self._whole: Streams | None = None  # the streams of the call, while some tokens are left out
        self._parts: dict[int, Streams] = {}
        self._attended: set[str] = set()  # streams whose tokens are queries of some attention
        #: Step and branch of the latest call, None before the first.
        self.moment: Moment | None = None
        self._masks: dict[Any, tuple[torch.Tensor, MaskView]] = {}
        self._masks_before: dict[Any, MaskView] = {}

    def begin(self, moment: Moment, model: Any, given: Mapping[str, Any]) -> None:
        """Take in a call: when it is, and its forward arguments by name."""
        self.forwards += 1
        self._masks.clear()
        self.moment = moment
        if not moment.aside:
            self.run_forwards = self.run_forwards + 1 if moment.run == self.run else 1
            self.run = moment.run
        self.keep_tokens(None)
        streams = self.family.streams(model, given)
        if streams != self.streams:  # else the same object stays: what layers know of it stays true
            self.streams = streams
            self._parts.clear()
            if not self._attended:
                self._attended = {found.queries for found in self.family.find_sites(model)}
            grids = [layout.grid for name, layout in streams.items() if name in self._attended and layout.has_grid]
            self.finest = max(grids, key=prod, default=None)
        parallel = getattr(model, "_parallel_config", None)
        if parallel is not self.parallel:
            self.parallel, self.split_inputs = parallel, frozenset() if parallel is None else split_inputs(model)
        if self.angles is None:
            self.angles = TimeAngles.of(model, self.family.time_positions)
        self.tiles = {} if self.family.tiles is None else self.family.tiles(model, given)

    def keep_tokens(self, count: int | None) -> None:
        """The layers that follow see ``count`` of the grid's tokens, in no grid any more; None = all of them again."""
        if self._whole is not None:
            self.streams, self._whole = self._whole, None
        if count is None:
            return
        if count not in self._parts:
            self._parts[count] = {name: _part(stream, count) for name, stream in self.streams.items()}
        self._whole, self.streams = self.streams, self._parts[count]

    def not_running(self) -> UnsupportedError:
        """What is raised when an attention layer is called before any call of the whole model."""
        return UnsupportedError(
            f"an attention layer of the patched {self.family.name} model was called outside of the model's "
            f"forward, so its token layout is unknown; call the whole model or remove the patch"
        )

    def mask(
        self,
        rule: Hashable,
        mask: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        grid_rows: tuple[int, int] | None = None,
        grid_keys: tuple[tuple[int, int], ...] = (),
    ) -> MaskView:
        """The attention mask as methods see it.

        Reading it waits for the device, so it is read once per call for all layers of one ``rule`` (the record's rule
        and the streams it joins): a model gives them one mask. On the CPU, where looking is cheap, that is checked.
        ``grid_rows`` is the span of the grid among the queries, when other tokens ask too, ``grid_keys`` the spans of
        the grid and its copies among the keys.
        """
        if mask is None:
            return NO_MASK
        key = (rule, tuple(mask.shape), mask.dtype, q.shape[0], q.shape[1], k.shape[1], grid_rows, grid_keys)
        if key in self._masks:
            seen, view = self._masks[key]
            if seen is mask or mask.device.type != "cpu" or torch.equal(seen, mask):
                return view
        view = view_mask(mask, q.shape[0], q.shape[1], k.shape[1], grid_rows, grid_keys)
        before = self._masks_before.get(key)
        if before is not None and view.keys is not None and before.keys is not None:
            # The same prompt again: the same tensor, so that plans kept per mask are found at once.
            if torch.equal(view.keys, before.keys):
                view = dataclasses.replace(view, keys=before.keys)
        if before is not None and view.pairs is not None and before.pairs is not None:
            if torch.equal(view.pairs, before.pairs):
                view = before
        self._masks[key], self._masks_before[key] = (mask, view), view
        return view


def _part(stream: Any, count: int) -> Any:
    """A stream of which ``count`` tokens of the grid are left, one row of them."""
    if not isinstance(stream, TokenLayout) or not stream.has_grid:
        return stream
    parts = (Segment(GRID, count) if part.name == GRID else part for part in stream.segments)
    return TokenLayout((1, 1, count), tuple(parts))
