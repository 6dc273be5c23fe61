"""What a model is shown of a picture that is inpainted: the mask and its surroundings, at a size that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from genkit.errors import UsageError, explain
from genkit.families.sizes import ReadConfig
from genkit.media.canvas import Canvas, Mask, Window

#: Working sizes up to so many times the size a model was trained on, where nothing else is known of its limit.
LARGEST = 2


@dataclass(frozen=True)
class Place:
    """The part of a picture that a model is shown.

    Args:
        window: the part.
        canvas: the part as it is worked on.
        inside: bool (H, W) on the canvas, what is unknown.
    """

    window: Window
    canvas: Canvas
    inside: np.ndarray

    @classmethod
    def of(
        cls,
        picture: np.ndarray,
        mask: Mask,
        multiple: int,
        context: int | None = None,
        least: tuple[int, int] = (1, 1),
        longest: int | None = None,
    ) -> Self:
        """Choose the part; see :class:`genkit.editing.hd_painter.pipeline.HDPainterPipeline`.

        A part that is larger than ``least`` or reaches the picture's borders gets a mirrored margin of less than
        ``multiple``; a picture that is smaller than ``least`` one up to it.
        """
        window = Window.around(mask.inside, context, least)
        canvas = Canvas.of(window.cut(picture), multiple, longest, least)
        return cls(window, canvas, canvas.pad(window.cut(mask.inside)))

    def told(self, picture: np.ndarray) -> tuple[str, ...]:
        """Which part of a picture the model is shown, and its working size."""
        window, (height, width) = self.window, self.canvas.size
        if (window.height, window.width) == picture.shape[:2]:
            return self.canvas.told
        line = (
            f"the model is shown {window.width}x{window.height} pixels around the mask, from column {window.left} and "
            f"row {window.top} on; --context shows it more or less"
        )
        if self.canvas.inner != (window.height, window.width):
            line += f"; they are scaled to {self.canvas.inner[1]}x{self.canvas.inner[0]} and back"
        elif self.canvas.size != (window.height, window.width):
            line += f"; worked on at {width}x{height} with a mirrored margin"
        return (line,)


def as_mask(mask: Mask | np.ndarray, picture: np.ndarray) -> Mask:
    """A mask of a picture's size that marks something.

    Raises:
        UsageError: anything else.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == bool and mask.ndim == 2:
        mask = Mask(mask)
    if not isinstance(mask, Mask):
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise UsageError(explain("mask", kind, "genkit.media.canvas.Mask, or an array (H, W) of bool"))
    if mask.inside.shape != picture.shape[:2]:
        raise UsageError(
            f"the mask has {mask.inside.shape[1]}x{mask.inside.shape[0]} pixels and the picture "
            f"{picture.shape[1]}x{picture.shape[0]}; give a mask of the picture's size"
        )
    if mask.empty:
        raise UsageError("the mask marks nothing; mark what shall be made anew")
    return mask


def native_side(config: ReadConfig) -> int | None:
    """Pixels along a side of the pictures that a model was trained on, as far as its configurations tell.

    Args:
        config: from a part's name to its configuration; empty for a part that is not there.
    """
    side: Any = config("unet").get("sample_size") or config("transformer").get("sample_size")
    levels = config("vae").get("block_out_channels")
    if not isinstance(side, int) or not levels:
        return None
    return side * 2 ** (len(levels) - 1)
