"""MP4 in fragments: frames that can be watched while later ones are still being made, in a file or through a pipe."""

from __future__ import annotations

import io
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain
from genkit.media.video import CRF, check_frames, encoded, exact_fps, video_stream

# Every frame is a fragment of its own: whoever stops reading has the frames that came so far.
_OPTIONS = {"movflags": "+frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_CODEC = {"preset": "veryfast", "tune": "zerolatency", "bf": "0"}


class ReaderGone(ArtifactError):
    """Whoever reads the pipe has ended; what it got until then plays."""


class FragmentedVideo:
    """H.264 in fragmented MP4, written as it comes. Use it as a context manager.

    Args:
        sink: takes bytes, such as a file opened with "wb" or ``sys.stdout.buffer``; it need not seek.
        fps: frames per second, kept exactly.
        comment: text kept in the file's comment field.
        name: of the sink, for messages.
        crf: quality, 0 (lossless) to 51.

    Every :meth:`write` hands the sink its frames but for the last, whose length the next one tells: that follows with
    the next write or the end. A file that ends anywhere, for whatever reason, plays up to there.
    """

    def __init__(
        self, sink: BinaryIO, fps: float | str | Fraction, *, comment: str | None = None, name: str = "", crf: int = CRF
    ):
        self.sink, self.rate, self.comment, self.crf = sink, exact_fps(fps), comment, crf
        self.name = name or "the video"
        self.frames = self.bytes = 0
        self._buffer = _Bytes()
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)

    def __enter__(self) -> FragmentedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(whole=error is None)

    def write(self, frames: np.ndarray) -> None:
        """Append frames, uint8 (T, H, W, 3), and hand them on.

        Raises:
            UsageError: odd sizes, another size than before. ReaderGone: nobody reads any more.
            ArtifactError: the disk is full.
        """
        frames = check_frames(frames)
        if self._container is None:
            self._open(*frames.shape[1:3])
        elif frames.shape[1:3] != self._size:
            raise UsageError(explain("frames", frames.shape[1:3], f"the size of those before, {self._size}"))
        for packet in encoded(self._stream, frames, self.rate, self.frames):
            self._container.mux(packet)
        self._hand_on()
        self.frames += len(frames)

    def close(self, whole: bool = True) -> None:
        """End the video; with ``whole`` off nothing more is handed on. Twice is harmless."""
        container, self._container = self._container, None
        if container is None:
            return
        if whole:
            container.mux(self._stream.encode(None))
        container.close()
        if whole:
            self._hand_on()

    def _open(self, height: int, width: int) -> None:
        import av

        if height % 2 or width % 2:
            raise UsageError(explain("video size", f"{width}x{height}", "even width and height for .mp4"))
        try:
            self._container = av.open(self._buffer, "w", format="mp4", options=_OPTIONS)
            if self.comment is not None:
                self._container.metadata["comment"] = self.comment
            self._stream = video_stream(self._container, self.rate, width, height, self.crf, **_CODEC)
        except av.error.EncoderNotFoundError as error:
            raise UnsupportedError(
                f"this FFmpeg build has no encoder for .mp4 ({error}); install PyAV from its wheels"
            ) from error
        self._size = (height, width)

    def _hand_on(self) -> None:
        data = self._buffer.take()
        try:
            self.sink.write(data)
            self.sink.flush()
        except BrokenPipeError as error:
            raise ReaderGone(
                f"the program that reads {self.name} has ended; it was given up to frame {self.frames}"
            ) from error
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            plays = "; it plays up to there" if self.bytes else ""
            raise ArtifactError(f"could not write {self.name}: {said}{plays}") from error
        self.bytes += len(data)


class _Bytes(io.RawIOBase):
    """What the muxer writes, until it is taken. It cannot seek, so nothing that was taken is changed later."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        """All bytes since the last time."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data
