"""How much of a picture, video or sound is decoded at most, whatever its file promises."""

from __future__ import annotations

from pathlib import Path

from genkit.errors import ArtifactError, counted
from genkit.reading.files import called

#: Pixels of one picture or frame.
PIXELS = 1 << 27
#: Frames of an animation or clip.
FRAMES = 20_000
#: Bytes of all decoded frames together.
BYTES = 1 << 31
#: Seconds of sound.
SECONDS = 3600


def check_decoded(path: str | Path, frames: int, height: int, width: int, pixels: int = PIXELS, what: str = "") -> None:
    """Refuse frames (T, H, W, 3) that are more than is decoded into memory; ``pixels`` is the limit of one of them,
    ``what`` the file to the user.

    Raises:
        ArtifactError: the message tells the size and the limit.
    """
    if height * width > pixels:
        size = f"{width}x{height} pixels"
        raise ArtifactError(f"{called(path, what)} has {size}, allowed: {pixels} in all; make it smaller")
    if frames > FRAMES or frames * height * width * 3 > BYTES:
        raise ArtifactError(
            f"{called(path, what)} has at least {counted(frames, 'frame')} of {width}x{height}, "
            f"allowed: {FRAMES} frames and {BYTES >> 30} GiB when decoded; shorten it or make it smaller"
        )
