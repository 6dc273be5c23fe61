"""Keys and values of a stream's earlier frames: a sink and a window that rolls, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from genkit.attention.frame_lists import turned
from genkit.errors import UsageError, counted
from genkit.streaming.window import Window

if TYPE_CHECKING:
    from genkit.streaming.state import Memory

#: Cosines and sines of rotary positions, (1, N, 1, D) each, every number twice.
Rotary = tuple[torch.Tensor, torch.Tensor]
#: Told of frames that leave a layer's window: (layer, keys before rotation, values, number of their first frame).
Evicted = Callable[[str, torch.Tensor, torch.Tensor, int], None]


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Tokens (B, N, H, D) turned by their positions; neighbouring channels are pairs, as Wan and SkyReels have them."""
    cos, sin = rotary
    return turned(x, cos[..., 0::2], sin[..., 1::2])


def placed(
    window: Window, made: int, tables: Callable[[tuple[int, ...]], Rotary], remembers: bool
) -> tuple[Rotary, Rotary | None]:
    """Rotary tables of the chunk after ``made`` frames: of all frames that it sees, and of those that a memory takes in
    with it, None for none.

    Args:
        window: of the stream.
        made: frames that are done.
        tables: positions in time -> rotary tables.
        remembers: whether there is a memory.
    """
    gone = window.leaving_positions(made) if remembers else ()
    return tables(window.positions(made)), tables(gone) if gone else None


@dataclass
class _Layer:
    """Buffers of one layer: (B, slots, H, D) each. ``turned`` is the chunk whose rotated earlier keys ``rotated``
    holds, None for none."""

    keys: torch.Tensor
    rotated: torch.Tensor
    values: torch.Tensor
    written: bool = False
    turned: int | None = None


@dataclass
class RollingCache:
    """Keys and values of the frames in a stream's window, layer by layer, for one row of prompts (a branch).

    Keys are kept as they are before rotation and turned once per chunk by the positions that the window gives them.
    A chunk's own keys and values lie behind the kept ones and count only after :meth:`commit`: a chunk that is
    interrupted leaves the cache as it was.

    Args:
        window: which frames are kept.
        evicted: told of what leaves the window, before it is gone; None = nobody.
        memory: takes in the frames that are no longer among the latest; None = they are forgotten.
    """

    window: Window
    evicted: Evicted | None = None
    memory: Memory | None = None
    made: int = 0
    tokens: int = 0
    _rotary: Rotary | None = None
    _leaving: Rotary | None = None
    _layers: dict[str, _Layer] = field(default_factory=dict)

    def begin(self, rotary: Rotary, tokens: int, leaving: Rotary | None = None) -> None:
        """A chunk begins.

        Args:
            rotary: of the window's positions, for all tokens that the chunk sees, its own last.
            tokens: of one latent frame.
            leaving: of the window's :meth:`~genkit.streaming.window.Window.leaving_positions`, for the memory.
        """
        if self.tokens not in (0, tokens):
            raise UsageError(
                f"the cache holds frames of {counted(self.tokens, 'token')} each, this chunk's have {tokens}"
            )
        self.tokens = tokens
        if self.memory is not None and leaving is None and self.window.leaving(self.made):
            raise UsageError("a cache with a memory is told where the frames stand that leave: begin(..., leaving=)")
        self._rotary, self._leaving = rotary, leaving
        for layer in self._layers.values():
            layer.written, layer.turned = False, None

    @property
    def kept(self) -> int:
        """Tokens of earlier frames that the chunk sees."""
        return len(self.window.kept(self.made)) * self.tokens

    @property
    def rotary(self) -> Rotary:
        """Of the chunk's own tokens."""
        assert self._rotary is not None, "begin() first"
        cos, sin = self._rotary
        return cos[:, self.kept :], sin[:, self.kept :]

    def seen(self, name: str, k: torch.Tensor, v: torch.Tensor, write: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys, rotated, and values that a chunk sees in a layer.

        Args:
            name: of the layer.
            k, v: (B, N, H, D) of the chunk, keys before rotation.
            write: whether they are those of the clean pass, which :meth:`commit` keeps.

        Returns:
            (B, kept + N, H, D) each: views of the buffers, good until the next call; copies where a gradient is wanted,
            which flows into the chunk's own keys and values.
        """
        assert self._rotary is not None, "begin() first"
        kept, total = self.kept, self.kept + k.shape[1]
        layer = self._layers.get(name)
        if layer is None:
            slots = self.window.length * self.tokens
            keys, rotated, values = (x.new_empty(x.shape[0], slots, *x.shape[2:]) for x in (k, k, v))
            layer = self._layers[name] = _Layer(keys, rotated, values)
        if layer.turned != self.made:
            cos, sin = self._rotary
            layer.rotated[:, :kept] = rotate(layer.keys[:, :kept], (cos[:, :kept], sin[:, :kept]))
            layer.turned = self.made
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            own = (rotate(k, self.rotary).to(layer.rotated.dtype), v.to(layer.values.dtype))
            before = (layer.rotated[:, :kept], layer.values[:, :kept])
            keys, values = (torch.cat(pair, 1) for pair in zip(before, own, strict=True))
            return keys, values
        layer.rotated[:, kept:total] = rotate(k, self.rotary)
        layer.values[:, kept:total] = v
        if write:
            layer.keys[:, kept:total] = k
            layer.written = True
        return layer.rotated[:, :total], layer.values[:, :total]

    def commit(self) -> None:
        """Keep what the clean pass of the chunk wrote, and drop what leaves the window."""
        left = [name for name, layer in self._layers.items() if not layer.written]
        if left or not self._layers:
            raise UsageError(f"no clean pass has filled the cache{' of ' + left[0] if left else ''}: nothing to keep")
        before, after = self.window.kept(self.made), self.window.kept(self.made + self.window.chunk)
        held = (*before, *range(self.made, self.made + self.window.chunk))
        self._absorb(held)
        gone = [slot for slot, frame in enumerate(held) if frame not in after]
        if gone:  # one run of frames, behind the sink
            start, stop, end = gone[0] * self.tokens, (gone[-1] + 1) * self.tokens, len(held) * self.tokens
            for name, layer in self._layers.items():
                if self.evicted is not None:
                    keys, values = layer.keys[:, start:stop].clone(), layer.values[:, start:stop].clone()
                    self.evicted(name, keys, values, held[gone[0]])
                for buffer in (layer.keys, layer.values):
                    buffer[:, start : start + end - stop] = buffer[:, stop:end].clone()
        self.made += self.window.chunk
        for layer in self._layers.values():
            layer.written, layer.turned = False, None

    def _absorb(self, held: tuple[int, ...]) -> None:
        """Give the memory what is no longer among the latest frames, while all that are ``held`` are still there."""
        leaving = self.window.leaving(self.made)
        if self.memory is None or self._leaving is None:
            return
        frames = torch.tensor([held.index(frame) for frame in leaving])[:, None]
        slots = (frames * self.tokens + torch.arange(self.tokens)).flatten()
        for name, layer in self._layers.items():
            at = slots.to(layer.keys.device)
            self.memory.absorb(name, layer.keys[:, at], layer.values[:, at], self._leaving)

    def clear(self) -> None:
        """Forget everything; the buffers are given back."""
        self.made = self.tokens = 0
        self._rotary = self._leaving = None
        if self.memory is not None:
            self.memory.layers.clear()
        self._layers.clear()

    @property
    def bytes(self) -> int:
        """Memory of all buffers."""
        parts = [part for layer in self._layers.values() for part in (layer.keys, layer.rotated, layer.values)]
        summed = 0 if self.memory is None else self.memory.bytes
        return summed + sum(part.numel() * part.element_size() for part in parts)
