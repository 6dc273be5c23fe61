"""A picture to be changed: its size for a model and back, the mask of what changes, and the rest kept bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from genkit.errors import UsageError, counted, explain
from genkit.media.images import resized
from genkit.media.limits import PIXELS
from genkit.media.read_image import Picture, read_image
from genkit.reading.files import place
from genkit.reading.masks import CHANNELS, WIDEST

#: Values of a mask's file from here on belong to the mask.
THRESHOLD = 128
#: Share of a mask that should be wholly new; where blending leaves less it is told.
WHOLE = 0.5


class Still(NamedTuple):
    """A picture that was read to be changed.

    Args:
        pixels: uint8 (H, W, 3), turned as its camera says, transparent parts on white.
        told: what was chosen in reading it, one line each.
    """

    pixels: np.ndarray
    told: tuple[str, ...]


def read_still(path: str | Path, pixels: int = PIXELS, what: str = "") -> Still:
    """The (first) picture of a file of any kind as 8-bit RGB; see :func:`genkit.media.read_image`.

    Args:
        path: the file.
        pixels: refuse a picture of more, before it is decoded.
        what: what it is to the user, for a message: ``"--style"``.

    Raises:
        ArtifactError: no readable image, or more than ``pixels``.
    """
    read = read_image(path, 1, pixels, what)
    return Still(read.frames[0], read.told)


@dataclass(frozen=True)
class Canvas:
    """A picture at a size that a model takes: as it is, with a margin of its own mirror image on the right and below.

    Only a canvas made with ``longest`` scales the picture; :attr:`told` says so.

    Args:
        picture: uint8 (H, W, 3), the input.
        inner: height and width of the picture on the canvas; its own unless it was scaled.
        size: height and width of the canvas.
    """

    picture: np.ndarray
    inner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, picture: np.ndarray, multiple: int, longest: int | None = None, least: tuple[int, int] = (1, 1)
    ) -> Self:
        """The smallest canvas for a picture.

        Args:
            picture: uint8 (H, W, 3).
            multiple: what height and width of the canvas are multiples of.
            longest: scale a picture whose longer side is more than this; None never scales.
            least: height and width that the canvas has at least.
        """
        height, width = picture.shape[:2]
        scale = 1.0 if longest is None else min(1.0, longest / max(height, width))
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        size = tuple(-(-max(side, low) // multiple) * multiple for side, low in zip(inner, least, strict=True))
        return cls(picture, inner, size)

    @property
    def told(self) -> tuple[str, ...]:
        """What the user should know of the working size, one line or none."""
        height, width = self.picture.shape[:2]
        if self.inner != (height, width):
            return (
                f"the picture of {width}x{height} is worked on at {self.inner[1]}x{self.inner[0]} "
                f"(on a canvas of {self.size[1]}x{self.size[0]}) and comes back at its own size",
            )
        if self.size != (height, width):
            return (
                f"the picture of {width}x{height} is worked on at {self.size[1]}x{self.size[0]}: its mirror image "
                "fills the margin, which is cut off again",
            )
        return ()

    def pad(self, values: np.ndarray) -> np.ndarray:
        """A picture (H, W, ...) of the size of the input, or a mask of bool (H, W), on the canvas.

        The margin of a mask is mirrored too: the mirror image of what is to be replaced must not show it to the model.
        """
        if values.shape[:2] != self.picture.shape[:2]:
            raise UsageError(f"on a canvas for {self.picture.shape[:2]} lies nothing of {values.shape[:2]}")
        if values.shape[:2] != self.inner:
            values = _scaled(values, self.inner)
        margin = [(0, outer - inner) for outer, inner in zip(self.size, self.inner, strict=True)]
        return np.pad(values, margin + [(0, 0)] * (values.ndim - 2), mode="reflect")

    @property
    def padded(self) -> np.ndarray:
        """The picture on the canvas, uint8 (canvas height, canvas width, 3)."""
        return self.pad(self.picture)

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """Pictures (..., canvas height, canvas width, 3) without the margin, at the size of the input."""
        if frames.shape[-3:-1] != self.size:
            raise UsageError(f"a canvas of {self.size} is cut from pictures of its size, not of {frames.shape[-3:-1]}")
        inner = frames[..., : self.inner[0], : self.inner[1], :]
        if self.inner == self.picture.shape[:2]:
            return np.ascontiguousarray(inner)
        flat = inner.reshape(-1, *inner.shape[-3:])
        return resized(flat, *self.picture.shape[:2]).reshape(*frames.shape[:-3], *self.picture.shape)


@dataclass(frozen=True)
class Window:
    """A part of a picture: what a model is shown of it.

    Args:
        top, left, height, width: in pixels.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(
        cls, inside: np.ndarray, context: int | None = None, least: tuple[int, int] = (1, 1), multiple: int = 1
    ) -> Self:
        """The smallest part of a picture with a mask in its middle, as far as the picture reaches.

        Args:
            inside: bool (H, W), not empty.
            context: pixels on each side of the mask's box; None = half of the box's longer side.
            least: height and width that the part has at least, if the picture has them.
            multiple: what height and width are multiples of, likewise.
        """
        found = []
        spans = [np.flatnonzero(inside.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
        usual = -(-max(int(stop - start) for start, stop in spans) // 2)
        for (start, stop), size, low in zip(spans, inside.shape, least, strict=True):
            wanted = max(int(stop - start) + 2 * (usual if context is None else context), low)
            length = min(size, -(-wanted // multiple) * multiple)
            found.append((min(max(int(start + stop - length) // 2, 0), size - length), length))
        (top, height), (left, width) = found
        return cls(top, left, height, width)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """The part of a picture (H, W, ...)."""
        return values[self.top : self.top + self.height, self.left : self.left + self.width]

    def put(self, values: np.ndarray, part: np.ndarray) -> np.ndarray:
        """A picture (H, W, ...) with this part replaced."""
        out = values.copy()
        out[self.top : self.top + self.height, self.left : self.left + self.width] = part
        return out


@dataclass(frozen=True)
class Mask:
    """Which pixels of a picture are made anew.

    Args:
        inside: bool (H, W): these are made anew, all others kept.
        feather: over how many pixels, from the border inwards, the new picture is blended into the old one.
        told: what was chosen in reading it, one line each.
    """

    inside: np.ndarray
    feather: int = 0
    told: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.inside.any()

    @property
    def full(self) -> bool:
        return bool(self.inside.all())

    def inverted(self) -> Mask:
        """What was kept is made anew."""
        return replace(self, inside=~self.inside)

    def grown(self, pixels: int) -> Mask:
        """Larger by so many pixels on all sides, or smaller by a negative number."""
        if pixels >= 0:
            return replace(self, inside=_spread(self.inside, pixels))
        return replace(self, inside=~_spread(~self.inside, -pixels))

    def feathered(self, pixels: int) -> Mask:
        """With another width of blending."""
        return replace(self, feather=pixels)

    def weights(self) -> np.ndarray:
        """Share of the new picture in each pixel, float32 (H, W): 0 outside; inside it grows from the border over
        ``feather`` pixels to 1. Parts too thin for that reach 1 in their middle."""
        inside = self.inside
        if self.feather <= 0 or self.full:
            return inside.astype(np.float32)
        outside = ~inside
        depth = inside.astype(np.int32)
        for step in range(self.feather):
            outside = _step(outside, step % 2 == 1)
            if outside.all():
                break
            depth += ~outside
        reach = np.maximum(_highest(depth, self.feather), 1)
        return np.where(inside, np.minimum(depth / reach, 1), 0).astype(np.float32)

    @classmethod
    def union(cls, masks: Iterable[Mask]) -> Mask:
        """What any of the masks marks; the widest feather.

        Raises:
            UsageError: no mask, or masks of several sizes.
        """
        masks = list(masks)
        sizes = {mask.inside.shape for mask in masks}
        if len(sizes) != 1:
            raise UsageError("a union is made of masks of one size" if sizes else "a union is made of one mask or more")
        told = tuple(dict.fromkeys(line for mask in masks for line in mask.told))
        inside = np.logical_or.reduce([mask.inside for mask in masks])
        return cls(inside, max(mask.feather for mask in masks), told)


def read_mask(
    path: str | Path,
    size: tuple[int, int],
    *,
    channel: str = "auto",
    invert: bool = False,
    grow: int = 0,
    feather: int = 0,
    pixels: int = PIXELS,
    what: str = "",
) -> Mask:
    """A mask from a file.

    Args:
        path: a picture of the size of the one to be changed. White marks what is made anew; of a file with transparent
            parts, what is not transparent.
        size: height and width of the picture to be changed.
        channel: one of :data:`genkit.reading.masks.CHANNELS`. Brightness is the largest of red, green and blue, so that
            any bright colour marks. Values from :data:`THRESHOLD` on do.
        invert: make anew what is not marked.
        grow: enlarge what is marked by so many pixels, after inverting; negative numbers shrink it.
        feather: see :class:`Mask`; a width that leaves less than :data:`WHOLE` of the mask unblended is told.
        pixels: refuse a file of more.
        what: what it is to the user, for a message: ``"--mask"``.

    Raises:
        UsageError: another size than the picture's, nothing or nothing more is marked, an unknown channel.
        ArtifactError: no readable image, or more than ``pixels``.
    """
    if channel not in CHANNELS:
        raise UsageError(explain("mask channel", channel, CHANNELS))
    for name, value, low in (("grow", grow, -WIDEST), ("feather", feather, 0)):
        if not low <= value <= WIDEST:
            raise UsageError(explain(f"mask {name}", value, f"{low} to {WIDEST} pixels"))
    read = read_image(path, 1, pixels, what)
    found = read.frames.shape[1:3]
    if found != tuple(size):
        raise UsageError(
            f"the mask {place(path)} has {found[1]}x{found[0]} pixels and the picture {size[1]}x{size[0]}; "
            "give a mask of the picture's size"
        )
    mask = Mask(_marked(read, path, channel), feather, _told(read, path, channel))
    mask = mask.inverted() if invert else mask
    if mask.empty:
        raise UsageError(
            f"the mask {place(path)} marks nothing; paint what shall be made anew white"
            + (" or leave inverting out" if invert else ", or invert it")
        )
    mask = mask.grown(grow)
    if mask.empty:
        raise UsageError(
            f"nothing is left of the mask {place(path)} when it is made smaller by {counted(-grow, 'pixel')}"
        )
    if mask.full:
        line = f"the mask {place(path)} marks the whole picture; nothing of it is kept"
        mask = replace(mask, told=(*mask.told, line))
    return _weakened(mask, path)


def _weakened(mask: Mask, path: str | Path) -> Mask:
    """The mask, which tells when blending leaves little of what is made anew."""
    whole = int((mask.weights() == 1).sum()) / int(mask.inside.sum()) if mask.feather else 1.0
    if whole >= WHOLE:
        return mask
    line = (
        f"a feather of {counted(mask.feather, 'pixel')} is wide for the mask {place(path)}: only {whole:.0%} "
        "of it is wholly new, "
        "in the rest the picture shines through; a narrower feather or a larger mask changes more"
    )
    return replace(mask, told=(*mask.told, line))


def paste(picture: np.ndarray, made: np.ndarray, mask: Mask) -> np.ndarray:
    """A picture with what was made inside a mask; pixels outside it are the picture's, bit for bit.

    Args:
        picture: uint8 (H, W, 3).
        made: uint8 (..., H, W, 3).
        mask: of the picture's size.
    """
    if made.shape[-3:] != picture.shape or mask.inside.shape != picture.shape[:2]:
        raise UsageError(
            f"pictures of {picture.shape} and {made.shape[-3:]} with a mask of {mask.inside.shape} cannot be pasted"
        )
    weights = mask.weights()[..., None]
    blended = np.rint(picture + weights * (made.astype(np.float32) - picture)).astype(np.uint8)
    return np.where(mask.inside[..., None], blended, picture)


def _marked(read: Picture, path: str | Path, channel: str) -> np.ndarray:
    if channel == "alpha" and read.opacity is None:
        raise UsageError(f"the mask {place(path)} has no transparent parts; read it by its brightness")
    if channel == "brightness" or read.opacity is None:
        return read.frames[0].max(axis=-1) >= THRESHOLD
    return read.opacity[0] >= THRESHOLD


def _told(read: Picture, path: str | Path, channel: str) -> tuple[str, ...]:
    """What was chosen in reading; that transparent parts were laid on white is said for the brightness only."""
    if read.opacity is None or channel == "brightness":
        return read.told
    lines = [line for line in read.told if "laid on white" not in line]
    if channel == "auto":
        lines.append(f"{Path(path).name} has transparent parts: what is not transparent in it is the mask")
    return tuple(lines)


def _scaled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return scaled_mask(values, size) if values.dtype == bool else resized(values[None], *size)[0]


def scaled_mask(inside: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) at another size; a pixel that holds any of it belongs to it, so that nothing is lost."""
    rows, columns = (np.linspace(0, now, new + 1) for now, new in zip(inside.shape, size, strict=True))
    counts = np.pad(inside.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    top, left = np.floor(rows[:-1] + 1e-9).astype(int), np.floor(columns[:-1] + 1e-9).astype(int)
    bottom, right = np.ceil(rows[1:] - 1e-9).astype(int), np.ceil(columns[1:] - 1e-9).astype(int)
    corners = [counts[np.ix_(one, other)] for one in (bottom, top) for other in (right, left)]
    return corners[0] - corners[1] - corners[2] + corners[3] > 0


def _step(mask: np.ndarray, corners: bool) -> np.ndarray:
    """A mask with the neighbours of its pixels: four, or eight with ``corners``. Taken in turn they make octagons."""
    across = mask.copy()
    across[:, 1:] |= mask[:, :-1]
    across[:, :-1] |= mask[:, 1:]
    base = across if corners else mask
    out = across.copy()
    out[1:] |= base[:-1]
    out[:-1] |= base[1:]
    return out


def _spread(mask: np.ndarray, pixels: int) -> np.ndarray:
    for step in range(pixels):
        if mask.all() or (step == 0 and not mask.any()):
            break
        mask = _step(mask, step % 2 == 1)
    return mask


def _highest(values: np.ndarray, radius: int) -> np.ndarray:
    """The largest value in the square of ``radius`` pixels around each pixel, by doubling windows along both axes."""
    for axis in (0, 1):
        length = min(radius, values.shape[axis])
        padded = np.pad(values, [(length, length) if each == axis else (0, 0) for each in (0, 1)])
        window, reach = padded, 1
        while reach < 2 * length + 1:
            more = min(reach, 2 * length + 1 - reach)
            tail = np.take(window, range(more, window.shape[axis]), axis)
            window = np.maximum(np.take(window, range(tail.shape[axis]), axis), tail)
            reach += more
        values = window
    return values
