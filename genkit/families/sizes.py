"""Sizes in pixels and frames that a family of pipelines accepts, and the token grid they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError

#: From the name of a pipeline's part ("vae", "transformer") to its configuration; an absent part reads as empty.
ReadConfig = Callable[[str], dict[str, Any]]
#: Frames, rows and columns of pixels.
Size = tuple[int, int, int]


@dataclass(frozen=True)
class SizeRule:
    """Accepted sizes: ``multiple`` divides height and width, ``frames_multiple`` divides ``num_frames - 1``."""

    multiple: int
    frames_multiple: int

    def check(self, height: int | None, width: int | None, num_frames: int | None) -> None:
        """Raise UsageError with the two nearest accepted values for a size that breaks the rule."""
        for name, size in (("--height", height), ("--width", width)):
            if size is not None and size % self.multiple:
                low = max(self.multiple, size // self.multiple * self.multiple)
                nearest = str(low) if size < low else f"{low} or {low + self.multiple}"
                raise UsageError(f"{name}: got {size}, allowed: multiples of {self.multiple}; try {nearest}")
        if num_frames is not None and (num_frames - 1) % self.frames_multiple:
            low = (num_frames - 1) // self.frames_multiple * self.frames_multiple + 1
            raise UsageError(
                f"--num-frames: got {num_frames}, allowed: 1 plus a multiple of {self.frames_multiple}; "
                f"try {low} or {low + self.frames_multiple}"
            )


def grid_of(token: Size, frames: int, height: int, width: int) -> Size:
    """The (T, H, W) token grid of a size, given the frames and pixels behind one token; the first frame is alone."""
    time, rows, columns = token
    return (frames - 1) // time + 1, height // rows, width // columns


def halvings(config: ReadConfig) -> int:
    """Pixels along one side of a latent, from the number of levels of an autoencoder."""
    return 2 ** (len(config("vae").get("block_out_channels", (1, 1, 1, 1))) - 1)


def packed_image(config: ReadConfig) -> SizeRule:
    """Sizes of images whose latents become tokens two by two."""
    return SizeRule(2 * halvings(config), 1)


def packed_image_token(config: ReadConfig) -> Size:
    """Pixels behind one token of such an image."""
    return 1, 2 * halvings(config), 2 * halvings(config)
