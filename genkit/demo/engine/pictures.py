"""Pictures that visitors give: checked before anything of them is decoded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from genkit.demo.engine.visitors import Visitor
from genkit.errors import ArtifactError, UsageError
from genkit.media.canvas import Still, read_still
from genkit.media.images import write_png

#: Pixels of a picture; 4096x4096.
PIXELS = 1 << 24
#: Bytes of an upload.
UPLOAD = 32 << 20


def take(visitor: Visitor, path: str | Path, what: str, roots: tuple[Path, ...] = ()) -> Path:
    """A copy of an uploaded picture in the visitor's folder, once it is known to be one.

    Args:
        visitor: whose it is.
        path: where the server put the upload.
        what: the picture's name in messages, such as "Picture".
        roots: folders that uploads lie in; nothing outside of them and the visitor's own is opened.

    Raises:
        UsageError: a path that leads elsewhere.
        ArtifactError: no picture, or more than :data:`PIXELS` pixels or :data:`UPLOAD` bytes.
    """
    found = Path(path).resolve()
    if not any(found.is_relative_to(root.resolve()) for root in (visitor.folder, *roots)):
        raise UsageError(f"{what}: only pictures that you upload here are opened")
    read(found, what)
    copy = visitor.new_file(found.suffix.lower()[:8])
    shutil.copyfile(found, copy)
    return copy


def read(path: Path, what: str) -> Still:
    """The picture of a file; messages say ``what`` instead of its place."""
    if not path.is_file():
        raise ArtifactError(f"{what}: the file is gone; upload it again")
    if path.stat().st_size > UPLOAD:
        raise ArtifactError(f"{what}: the file is larger than {UPLOAD >> 20} MB; make it smaller")
    try:
        return read_still(path, PIXELS)
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {str(error).replace(str(path), path.name)}") from error


def store(visitor: Visitor, picture: np.ndarray) -> Path:
    """A picture (H, W, 3) uint8, such as a painted mask, as a file in the visitor's folder."""
    path = visitor.new_file(".png")
    write_png(path, picture)
    return path
