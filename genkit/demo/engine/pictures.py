"""Pictures that visitors give: checked before anything of them is decoded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genkit.demo.engine.visitors import Visitor
from genkit.errors import ArtifactError, UsageError, explain
from genkit.media.canvas import Mask, Still, read_still
from genkit.media.images import write_png

#: Pixels of a picture; 4096x4096.
PIXELS = 1 << 24
#: Bytes of an upload.
UPLOAD = 32 << 20
#: Names of clips, which are read by what they are.
CLIPS = (".mp4", ".m4v", ".mov", ".webm")
#: Opacity or brightness above which a pixel of a layer belongs to the mask.
HALF = 127
#: Colour of masks, seen on most pictures.
PAINT = (245, 197, 24)


def take(visitor: Visitor, path: str | Path, what: str, roots: tuple[Path, ...] = (), *, clip: bool = False) -> Path:
    """A copy of an uploaded picture in the visitor's folder, once it is known to be one.

    Args:
        visitor: whose it is.
        path: where the server put the upload.
        what: the picture's name in messages, such as "Picture".
        roots: folders that uploads lie in; nothing outside of them and the visitor's own is opened.
        clip: it is a clip; only its name and size are looked at here, and its frames counted when it is read.

    Raises:
        UsageError: a path that leads elsewhere, or a clip of another kind of file.
        ArtifactError: no picture, or more than :data:`PIXELS` pixels or :data:`UPLOAD` bytes.
    """
    found = Path(path).resolve()
    if not any(found.is_relative_to(root.resolve()) for root in (visitor.folder, *roots)):
        raise UsageError(f"{what}: only pictures that you upload here are opened")
    if clip and found.suffix.lower() not in CLIPS:
        raise UsageError(explain(what, found.suffix, CLIPS))
    check_upload(found, what)
    if not clip:
        read(found, what)
    copy = visitor.new_file(found.suffix.lower()[:8])
    shutil.copyfile(found, copy)
    return copy


def check_upload(path: Path, what: str) -> None:
    """Refuse a file that is gone or too large."""
    if not path.is_file():
        raise ArtifactError(f"{what}: the file is gone; upload it again")
    if path.stat().st_size > UPLOAD:
        raise ArtifactError(f"{what}: the file is larger than {UPLOAD >> 20} MB; make it smaller")


def read(path: Path, what: str) -> Still:
    """The picture of a file; messages say ``what`` instead of its place."""
    try:
        return read_still(path, PIXELS)
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {str(error).replace(str(path), path.name)}") from error


def sent(visitor: Visitor, payload: Any, what: str, roots: tuple[Path, ...] = ()) -> Path:
    """What a canvas of the page sent, bytes or the path of an upload, as a picture in the visitor's folder.

    Raises:
        GenkitError: as :func:`take`.
    """
    if not isinstance(payload, bytes):
        return take(visitor, payload, what, roots)
    if len(payload) > UPLOAD:
        raise ArtifactError(f"{what}: more than {UPLOAD >> 20} MB were sent; take a smaller picture")
    path = visitor.new_file(".png")
    path.write_bytes(payload)
    read(path, what)
    return path


def union(paths: Sequence[Path], height: int, width: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mask that layers of a canvas make together, and what was changed to make it fit.

    Args:
        paths: pictures; what is opaque belongs to the mask, in pictures without transparency what is bright.
        height, width: of the picture that is painted on.

    Returns:
        bool (height, width), and lines for the visitor.
    """
    from PIL import Image

    mask, told = np.zeros((height, width), bool), []
    for path in paths:
        with Image.open(path) as layer:
            has_alpha = layer.has_transparency_data
            values = layer.convert("RGBA").getchannel("A") if has_alpha else layer.convert("L")
        if values.size != (width, height):
            told.append(f"the mask of {values.width}x{values.height} was scaled to the picture's {width}x{height}")
            values = values.resize((width, height), Image.Resampling.NEAREST)
        mask |= np.asarray(values) > HALF
    return mask, tuple(told)


def marked(picture: np.ndarray, mask: Mask) -> np.ndarray:
    """A picture that shows what is made anew: there it has the colour of the brush, elsewhere it is greyed.

    Args:
        picture: uint8 (H, W, 3).
        mask: of its size; where it is blended the colour is, too.
    """
    values, share = picture.astype(np.float32), mask.weights()[..., None]
    grey = 0.45 * values.mean(-1, keepdims=True) + 0.1 * values + 110
    tinted = 0.4 * values + 0.6 * np.array(PAINT, np.float32)
    return (share * tinted + (1 - share) * grey).round().clip(0, 255).astype(np.uint8)


def store_mask(visitor: Visitor, mask: np.ndarray) -> Path:
    """A mask, bool (H, W), as a black and white picture in the visitor's folder."""
    path = visitor.new_file(".png")
    write_png(path, np.repeat((mask * np.uint8(255))[..., None], 3, axis=-1))
    return path
