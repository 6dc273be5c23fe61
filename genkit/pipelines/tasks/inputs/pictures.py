"""Frames and masks as Pillow pictures, which every pipeline reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from genkit.errors import UsageError, explain

#: How far a value may be beyond its range: what resizing and half precision leave.
_SLACK = 0.05


def as_pictures(frames: np.ndarray) -> list[Any]:
    """uint8 (T, H, W, 3) as Pillow pictures."""
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def as_masks(inside: np.ndarray) -> list[Any]:
    """bool (T, H, W) as grey Pillow pictures, white where something is made."""
    from PIL import Image

    return [Image.fromarray(frame.astype(np.uint8) * 255) for frame in inside]


def as_ready(name: str, pictures: Any) -> list[Any]:
    """Pictures that Diffusers' image processors read without surprises.

    They take channels and values as they come: grey pictures fail in the autoencoder, values of 0..255 and NaN go
    through to the clip.

    Args:
        name: of the argument, for messages.
        pictures: one or a list: Pillow pictures of any mode of 8 bits; arrays ([N,] H, W, 3) or tensors ([N,] 3, H, W),
            uint8 or floating in 0..1 (or all of them in -1..1, as Diffusers has it).

    Returns:
        Pillow pictures (RGB; transparent parts are laid on white), and arrays or tensors in 0..1, of four axes; one
        picture at least.

    Raises:
        UsageError: anything else.
    """
    from PIL import Image

    given = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    ready = [_on_white(name, each) if isinstance(each, Image.Image) else _stack(name, each) for each in given]
    full = [number for number, each in enumerate(ready) if isinstance(each, Image.Image) or len(each)]
    if not full:
        raise UsageError(f"{name}: got no picture; give one, or a list of them")
    # Of one list all floating pictures are of one range; whole numbers have theirs.
    floating = [number for number in full if _floats(given[number])]
    if any(float(ready[number].min()) < 0 for number in floating):
        return [(ready[number] + 1) / 2 if number in floating else ready[number] for number in full]
    return [ready[number] for number in full]


def _floats(picture: Any) -> bool:
    """Whether it is an array or a tensor of floating values."""
    if isinstance(picture, np.ndarray):
        return picture.dtype.kind == "f"
    return bool(getattr(picture, "is_floating_point", lambda: False)())


def _stack(name: str, picture: Any) -> Any:
    """An array or a tensor with four axes; whole numbers in 0..1."""
    import torch

    last = isinstance(picture, np.ndarray)
    if not last and not isinstance(picture, torch.Tensor):
        allowed = "a Pillow picture, an array (H, W, 3) or a tensor (3, H, W), or a list of them"
        if isinstance(picture, str):
            raise UsageError(explain(name, picture, allowed, "open files with PIL.Image.open"))
        raise UsageError(f"{name}: got a value of type {type(picture).__name__}, allowed: {allowed}")
    if picture.ndim not in (3, 4) or picture.shape[-1 if last else -3] != 3:
        allowed = f"{'(height, width, 3)' if last else '(3, height, width)'}, or a stack of them"
        raise UsageError(f"{name}: got shape {tuple(picture.shape)}, allowed: {allowed}")
    stack = picture if picture.ndim == 4 else picture[None]
    if stack.dtype in (np.uint8, torch.uint8):
        return (stack.astype(np.float32) if last else stack.float()) / 255
    if len(stack):
        low, high = float(stack.min()), float(stack.max())
        if not (low >= -1 - _SLACK and high <= 1 + _SLACK):  # NaN is in no range
            allowed = "0 to 1, -1 to 1, or 0 to 255 as uint8"
            raise UsageError(f"{name}: got values from {low:g} to {high:g}, allowed: {allowed}")
    return stack


def _on_white(name: str, picture: Any) -> Any:
    """A Pillow picture as RGB."""
    from genkit.media.read_image import laid_on_white

    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        raise UsageError(f"{name}: got a picture of mode {picture.mode}, allowed: 8 bits per colour; convert it")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    return laid_on_white(picture.convert("RGBA")).convert("RGB")
