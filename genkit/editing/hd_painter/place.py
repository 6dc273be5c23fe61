"""What a model is shown of a picture that is inpainted: the mask and its surroundings, at a size that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from genkit.errors import UsageError, explain
from genkit.families.sizes import ReadConfig
from genkit.media.canvas import Canvas, Mask, Window, scaled_mask
from genkit.media.images import resized

#: Working sizes up to so many times the size a model was trained on, where nothing else is known of its limit.
LARGEST = 2


@dataclass(frozen=True)
class Place:
    """The part of a picture that a model is shown.

    Args:
        window: the part.
        canvas: the part on a canvas; at its own size unless it was scaled.
        mask: bool (H, W) of the window, what is unknown.
        factor: how many times smaller than the canvas the model works, where an upscaler draws it large afterwards.
    """

    window: Window
    canvas: Canvas
    mask: np.ndarray
    factor: int = 1

    @classmethod
    def of(
        cls,
        picture: np.ndarray,
        mask: Mask,
        multiple: int,
        context: int | None = None,
        least: tuple[int, int] = (1, 1),
        longest: int | None = None,
        factor: int = 1,
    ) -> Self:
        """Choose the part; see :class:`genkit.editing.hd_painter.pipeline.HDPainterPipeline`.

        Args:
            factor: of the upscaler; 1 without one. It serves where the part is larger than ``longest``.

        Raises:
            UsageError: with an upscaler, a part that is too large for it as well.
        """
        window = Window.around(mask.inside, context, least, multiple)
        part, inside = window.cut(picture), window.cut(mask.inside)
        side = max(part.shape[:2])
        if factor == 1 or longest is None or side <= longest:
            return cls(window, Canvas.of(part, multiple, longest, least), inside)
        canvas = Canvas.of(part, multiple * factor)
        if max(canvas.size) > longest * factor:
            raise UsageError(
                f"the part around the mask is {part.shape[1]}x{part.shape[0]}; a model that works on up to {longest} "
                f"pixels and an upscaler of {factor} make {longest * factor}: raise --longest, give less --context, or "
                "a smaller mask"
            )
        return cls(window, canvas, inside, factor)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the model works on."""
        return self.canvas.size[0] // self.factor, self.canvas.size[1] // self.factor

    @property
    def large(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture, uint8 (H, W, 3), and what of it is unknown, bool (H, W), at the size of the canvas."""
        return self.canvas.padded, self.canvas.pad(self.mask)

    @property
    def working(self) -> tuple[np.ndarray, np.ndarray]:
        """The same at the size that the model works on."""
        picture, inside = self.large
        if self.factor == 1:
            return picture, inside
        return resized(picture[None], *self.size)[0], scaled_mask(inside, self.size)

    def told(self, picture: np.ndarray) -> tuple[str, ...]:
        """Which part of a picture the model is shown, and its working size."""
        window, (height, width) = self.window, self.size
        whole = (window.height, window.width) == picture.shape[:2]
        if whole and self.factor == 1:
            return self.canvas.told
        line = f"the model is shown {window.width}x{window.height} pixels" + (
            "" if whole else f" around the mask, from column {window.left} and row {window.top} on; --context sets more"
        )
        if self.factor > 1:
            line += f"; they are made at {width}x{height} and drawn {self.factor} times larger by the upscaler"
        elif self.canvas.inner != (window.height, window.width):
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


def usual_context(mask: Mask, trained: bool) -> int:
    """Pixels around a mask that a model sees where nobody says.

    A model that was trained to inpaint makes good use of much: half of the longer side of the mask's box. Others have
    to be made to put the object into the mask: the larger its share of what they make, the surer they do. They get an
    eighth, 8 pixels at least.

    Args:
        mask: what is made anew. trained: whether the denoiser reads mask and picture.
    """
    height, width = (int(np.ptp(np.flatnonzero(mask.inside.any(axis)))) + 1 for axis in (1, 0))
    return max(8, max(height, width) // (2 if trained else 8))
