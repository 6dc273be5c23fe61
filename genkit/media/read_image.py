"""Pictures and animations of other programs as 8-bit RGB: what a viewer would show, within limits."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from genkit.errors import ArtifactError, UsageError, counted, escaped, shortened
from genkit.media.images import EXIF_DESCRIPTION, PNG_KEY
from genkit.media.limits import PIXELS, check_decoded
from genkit.reading import open_file
from genkit.reading.files import called, place

#: Formats whose further pictures are frames of one animation. Elsewhere (TIFF, MPO, ...) they are other pictures.
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
#: Formats that Pillow gives to an interpreter of the system (Ghostscript for EPS, Windows for WMF and EMF).
_PROGRAMS = ("EPS", "WMF", "EMF")
#: Transparent parts show this colour, whatever colour the file hides under them.
BEHIND = (255, 255, 255)
#: What Pillow raises about damaged files.
_RAISED = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, AttributeError, ArithmeticError,
           RuntimeError, MemoryError, struct.error, zlib.error)  # fmt: skip
#: Kinds of pictures in the container of MP4, of which Pillow may know none.
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1", b"crx ")
#: First bytes of Matroska and WebM, FLV, MPEG and ASF.
_CLIPS = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75")
_UNKNOWN = "it is none that is known; give a PNG, JPEG, WebP or GIF file"
#: Proportions of pixels that are followed; beyond them the mark is taken for nonsense.
_STRETCH = 4


class Picture(NamedTuple):
    """A picture or animation as it was read.

    Args:
        frames: uint8 (T, H, W, 3).
        fps: mean frame rate; None for one frame.
        comment: the text stored in it, or None.
        told: what was chosen in reading it, one line each.
        opacity: uint8 (T, H, W) of a file with transparent parts, 255 for solid ones; None without any.
    """

    frames: np.ndarray
    fps: Fraction | None
    comment: str | None
    told: tuple[str, ...] = ()
    opacity: np.ndarray | None = None


def read_image(path: str | Path, most: int | None = None, pixels: int = PIXELS, what: str = "") -> Picture:
    """Decode a GIF, WebP, PNG, JPEG, TIFF, ..., turned as its camera says.

    16 bits per colour are scaled to 8. Transparent parts are laid on white. Of a file of several pictures that are no
    animation (TIFF, MPO) the first is taken.

    Args:
        path: the file.
        most: decode no more frames than this; None for all.
        pixels: refuse a picture of more, before it is decoded.
        what: what it is to the user, for a message: ``"--mask"``.

    Raises:
        ArtifactError: the file is no readable image, holds numbers without a fixed white (float or 32 bits), or is
            larger than is decoded.
    """
    told: list[str] = []
    with _opened(path, what) as image:
        check_decoded(path, 1, image.height, image.width, pixels, what)  # before the text is looked for: that decodes
        comment = _comment(image)
        count = most if image.format in ANIMATED else 1
        frames: list[np.ndarray] = []
        opacities: list[np.ndarray | None] = []
        total = 0.0
        while count is None or len(frames) < count:
            try:
                image.seek(len(frames))
            except EOFError:
                break
            check_decoded(path, len(frames) + 1, image.height, image.width, pixels, what)
            frame, opacity = _rgb(image, path, told)
            frames.append(frame)
            opacities.append(opacity)
            total += _milliseconds(image)
        pictures = getattr(image, "n_frames", 1)
        if pictures > 1 and image.format not in ANIMATED:
            told.append(f"{Path(path).name} holds {counted(pictures, 'picture')}; the first was taken")
        elif pictures > 1 and most == 1:
            told.append(f"{Path(path).name} is an animation of {counted(pictures, 'picture')}; the first was taken")
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("its frames differ in size")
        clip = np.stack(frames)
        opaque = all(each is None for each in opacities)
        solid = np.full(clip.shape[1:3], 255, np.uint8)
        opacity = None if opaque else np.stack([solid if each is None else each for each in opacities])
    fps = Fraction(1000 * len(frames), round(total)) if len(frames) > 1 and total else None
    return Picture(clip, fps, comment, tuple(dict.fromkeys(told)), opacity)


def read_comment(path: str | Path) -> str | None:
    """The text stored in an image file; decodes no more than the first frame. Raises as :func:`read_image`."""
    with _opened(path) as image:
        check_decoded(path, 1, image.height, image.width)
        return _comment(image)


def check_image(path: str | Path, what: str = "") -> None:
    """Raise as :func:`read_image` for a file that is no image of a known kind; decodes nothing."""
    with _opened(path, what):
        pass


def read_frames(paths: list[Path]) -> tuple[np.ndarray, str | None]:
    """Decode numbered PNG files in order: frames (T, H, W, 3) uint8 and the first file's comment."""
    if not paths:
        raise UsageError("no numbered .png frame was found")
    decoded: list[Picture] = []
    for path in paths:
        decoded.append(read_image(path, 1))
        check_decoded(paths[0], len(decoded), *decoded[0].frames.shape[1:3])
    if len({each.frames.shape for each in decoded}) > 1:
        raise ArtifactError(f"the frames beginning with {place(paths[0])} differ in size")
    return np.concatenate([each.frames for each in decoded]), decoded[0].comment


@contextmanager
def _opened(path: str | Path, what: str = "") -> Iterator[Any]:
    """The image file, with whatever Pillow raises about it as one line."""
    from PIL import Image, UnidentifiedImageError

    name = called(path, what)
    with open_file(path, what) as stream:
        try:
            with Image.open(stream) as image:
                if image.format in _PROGRAMS:
                    raise ArtifactError(
                        f"cannot read {name} as an image: {image.format} is a program that draws, which is not "
                        "run; save it as PNG"
                    )
                yield image
        except UnidentifiedImageError as error:
            kind = "it is a clip; give a picture, such as one frame of it" if _clip(stream) else _UNKNOWN
            raise ArtifactError(f"cannot read {name} as an image: {kind}") from error
        except Image.DecompressionBombError as error:
            found = re.search(r"\d+ pixels", str(error))
            many = found[0] if found else "more pixels than are decoded"
            most = min(PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or PIXELS))  # beyond twice as many it raises
            raise ArtifactError(f"{name} has {many}, allowed: {most} in all; make it smaller") from error
        except _RAISED as error:
            said = shortened(escaped(str(error) or type(error).__name__))
            raise ArtifactError(f"cannot read {name} as an image: {said}") from error


def _clip(stream: BinaryIO) -> bool:
    """Whether a file begins as clips do: MP4 and MOV, Matroska and WebM, AVI, FLV, MPEG, ASF."""
    stream.seek(0)
    start = stream.read(16)
    if start[4:8] == b"ftyp":
        return start[8:12] not in _STILLS
    if start[:4] == b"RIFF":
        return start[8:11] == b"AVI"
    return start[4:8] in (b"moov", b"mdat", b"wide") or start.startswith(_CLIPS)


def _milliseconds(image: Any) -> float:
    duration = image.info.get("duration", 0)
    return duration if isinstance(duration, (int, float)) and 0 <= duration < 1e9 else 0


def _rgb(image: Any, path: str | Path, told: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The current frame as uint8 (H, W, 3), and its opacity (H, W) where a part of it is transparent."""
    from PIL import Image, ImageOps

    name = Path(path).name
    stretch = _stretch(image)
    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("I", "F"):
        raise ValueError("its values have no fixed white (32 bits or float); save it with 8 or 16 bits per colour")
    sixteen = turned.mode.startswith("I;16")
    if sixteen:
        turned = _eight_bits(turned)
    opacity = None
    if turned.has_transparency_data:
        layers = turned.convert("RGBA")
        if layers.getextrema()[3][0] < 255:
            opacity = layers.getchannel("A")
            told.append(f"the transparent parts of {name} were laid on white")
        turned = laid_on_white(layers)
    turned = turned.convert("RGB")
    if stretch != 1:
        if turned.size != image.size:  # turned by a quarter
            stretch = 1 / stretch
        told.append(f"the pixels of {name} are not square; it was widened to the shape they stand for")
        size = (max(1, round(turned.width * stretch)), turned.height)
        turned = turned.resize(size, Image.Resampling.LANCZOS)
        opacity = None if opacity is None else opacity.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(turned), None if opacity is None else np.asarray(opacity)


def laid_on_white(layers: Any) -> Any:
    """A Pillow picture (RGBA) without transparent parts."""
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", layers.size, (*BEHIND, 255)), layers)


def _eight_bits(image: Any) -> Any:
    """A grey picture of 16 bits as one of 8; a colour that the file marks as transparent becomes so."""
    from PIL import Image

    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    hidden = image.info.get("transparency")
    if not isinstance(hidden, int):
        return grey
    opacity = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, opacity))


def _stretch(image: Any) -> float:
    """Width of a pixel by its height, where the file gives proportions and no absolute size."""
    pair = image.info.get("aspect") if image.format == "PNG" else None
    if image.format == "JPEG" and image.info.get("jfif_unit") == 0:
        pair = image.info.get("jfif_density")
    if not isinstance(pair, tuple) or len(pair) != 2 or min(pair) <= 0:
        return 1
    ratio = pair[1] / pair[0]
    return ratio if 1 / _STRETCH <= ratio <= _STRETCH and ratio != 1 else 1


def _comment(image: Any) -> str | None:
    if image.format == "PNG":
        image.load()
        found = image.text.get(PNG_KEY)
    elif image.format == "GIF":
        raw = image.info.get("comment")
        found = raw.decode("ascii", "replace") if raw else None
    else:
        found = image.getexif().get(EXIF_DESCRIPTION)
    return found if isinstance(found, str) else None
