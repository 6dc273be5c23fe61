"""Moving what a model takes for time positions, for passes of its own such as a reference pass, and taking rotation
out of a model's hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.lookup import diffusers_class, records, unwrap


@contextmanager
def time_shift(model: Any, frames: int) -> Iterator[None]:
    """Calls of a denoiser inside the ``with`` rotate as if their first latent frame were number ``frames``.

    A reference of a subject should not carry the positions of the picture's own frames, or the model takes it for one
    of them: put it behind the last one. Works on models that derive rotary positions from the latents' shape (Wan,
    HunyuanVideo); others take coordinates as an argument, which the error names.

    Raises:
        UsageError: a negative shift, or one beyond the positions the model knows. UnsupportedError: other models.
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 0:
        raise UsageError(explain("time shift", frames, "a whole number of latent frames >= 0"))
    model = unwrap(model)
    name, way = _told(model)
    if way != "shape":
        told = f"give it its own {way}" if way else "it has no rotary time positions"
        raise UnsupportedError(f"time_shift does not work on {name}: {told}")
    rope = model.rope
    patch = getattr(rope, "patch_size_t", None) or model.config.patch_size[0]

    def lengthen(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        sample = args[0]
        batch, channels, length, height, width = sample.shape
        most = getattr(module, "max_seq_len", None)
        if most is not None and frames + length // patch > most:
            raise UsageError(f"time shift: {frames} + {length // patch} frames, the model knows {most} positions")
        return (sample[:, :, :1].expand(batch, channels, length + frames * patch, height, width),)

    def cut(module: torch.nn.Module, args: tuple[torch.Tensor], output: Any) -> Any:
        length = args[0].shape[2] // patch
        return tuple(_last(table, length, frames) for table in output)

    hooks = [rope.register_forward_pre_hook(lengthen), rope.register_forward_hook(cut)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last(table: torch.Tensor, length: int, skipped: int) -> torch.Tensor:
    """A table of rotary factors, (N, D) or (1, N, 1, D), without the tokens of the first frames."""
    axis = 0 if table.dim() == 2 else 1
    tokens = table.shape[axis]
    return table.narrow(axis, skipped * (tokens // length), tokens - skipped * (tokens // length))


def _told(model: Any) -> tuple[str, str]:
    """The class of a model, and how its record says that positions reach it."""
    name = diffusers_class(model) or type(model).__name__
    known = {cls: family for family in records() for cls in family.classes}
    return name, known[name].time_positions if name in known else ""


class TimeAngles:
    """How a model turns pairs of neighbouring channels along time, for methods that move frames to other positions.

    Args:
        rope: the model's own module, which derives its tables from the latents' shape.
    """

    def __init__(self, rope: Any):
        patch = rope.patch_size
        self._rope = rope
        self._patch = tuple(patch) if isinstance(patch, (tuple, list)) else (rope.patch_size_t, patch, patch)

    @classmethod
    def of(cls, model: Any, way: str) -> TimeAngles | None:
        """Those of a denoiser whose record says ``way`` of its positions in time; None where they come otherwise."""
        rope = getattr(model, "rope", None)
        return cls(rope) if way == "shape" and hasattr(rope, "patch_size") else None

    def __call__(self, frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the positions 0 to ``frames - 1`` of a clip of so many, (frames, D / 2) each: those of
        the place (0, 0), where the channels of height and width do not turn."""
        t, h, w = self._patch
        # The forward itself: hooks on the module stand for other positions.
        cos, sin = type(self._rope).forward(self._rope, torch.empty(1, 1, frames * t, h, w, device=device))
        cos, sin = (table.reshape(frames, -1) for table in (cos, sin))
        return cos[:, 0::2], sin[:, 1::2]


@dataclass(frozen=True)
class Positions:
    """The rotary tables of a model, read without a call of it.

    Args:
        rope: the model's own module.
        patch: latent frames, rows and columns of a token.
    """

    rope: Any
    patch: tuple[int, int, int]

    def tables(self, frames: Sequence[int], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of all tokens of some positions in time, (1, frames x rows x columns, 1, D) each.

        Args:
            frames: positions in time, in tokens' frames; in any order.
            like: latents (B, C, T, H, W) of the size and on the device of the call.
        """
        most = getattr(self.rope, "max_seq_len", None)
        length = max(frames) + 1
        if most is not None and length > most:
            raise UsageError(f"position {length - 1} in time: the model knows {most} positions")
        sample = like[:1, :1, :1].expand(1, 1, length * self.patch[0], *like.shape[3:])
        # The forward itself: hooks on the module stand for other positions.
        made = type(self.rope).forward(self.rope, sample)
        places = torch.tensor(list(frames), device=made[0].device)
        return tuple(table.unflatten(1, (length, -1)).index_select(1, places).flatten(1, 2) for table in made)


@contextmanager
def unrotated(model: Any) -> Iterator[Positions]:
    """Calls of a denoiser inside the ``with`` rotate nothing: queries and keys reach the gate as they are projected.

    For methods that rotate themselves, such as attention over a cache whose keys move through the positions. The
    model's own tables come from what is yielded.

    Raises:
        UnsupportedError: a model that does not derive rotary positions in pairs of channels from the latents' shape.
    """
    model = unwrap(model)
    name, way = _told(model)
    if way != "shape":
        raise UnsupportedError(f"{name}: its rotary positions cannot be left out, they are no function of its latents")
    rope = model.rope

    def nothing(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple) or len(output) != 2 or output[0].dim() != 4:
            raise UnsupportedError(f"{name}: its rotary tables are not cosines and sines (1, N, 1, D)")
        return torch.ones_like(output[0]), torch.zeros_like(output[1])

    hook = rope.register_forward_hook(nothing)
    try:
        yield Positions(rope, tuple(model.config.patch_size))
    finally:
        hook.remove()
