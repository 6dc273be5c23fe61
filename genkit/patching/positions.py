"""Moving what a model takes for time positions, for passes of its own such as a reference pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    name = diffusers_class(model) or type(model).__name__
    known = {cls: family for family in records() for cls in family.classes}
    way = known[name].time_positions if name in known else ""
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
