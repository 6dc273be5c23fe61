"""What of a folder's files is trained on: sizes, frames, and the pixels of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.media.images import resized
from genkit.media.read_image import read_image
from genkit.media.read_video import probe_video, read_chosen
from genkit.reading.files import place
from genkit.training.data.folder.buckets import Bucket, choose_frames, choose_sides, crop
from genkit.training.data.folder.items import Folder, Item
from genkit.training.data.source import FRAME_EXTRACTIONS

_SHOWN = 3


@dataclass(frozen=True)
class Cut:
    """What of a file is one sample.

    Args:
        item: the file.
        bucket: size of the sample.
        frames: numbers of the video's frames, in order; (0,) of a picture.
        told: what a user should know about how the file is read.
        fps: frames per second of the sample; None of a picture.
        start: seconds from the file's beginning to the sample's.
    """

    item: Item
    bucket: Bucket
    frames: tuple[int, ...]
    told: tuple[str, ...] = ()
    fps: Fraction | None = None
    start: Fraction = Fraction(0)

    @property
    def shelf(self) -> str:
        """Samples of one shelf can be stacked to a batch."""
        return str(self.bucket) if self.fps is None else f"{self.bucket} at {float(self.fps):g} fps"

    @property
    def name(self) -> str:
        """The file, and where in it the sample begins."""
        return place(self.item.path) + (f" from {float(self.start):.4g} s" if self.start else "")

    def read(self) -> np.ndarray:
        """The pixels, uint8 (frames, height, width, 3): scaled to cover the bucket and cut in the middle."""
        sides = (self.bucket.height, self.bucket.width)
        if self.item.video:
            video = probe_video(self.item.path)
            *scaled, top, left = crop(video.height, video.width, sides)
            frames = read_chosen(video, self.frames, (scaled[0], scaled[1]))
        else:
            frames = read_image(self.item.path, 1).frames
            *scaled, top, left = crop(*frames.shape[1:3], sides)
            if tuple(scaled) != frames.shape[1:3]:
                frames = resized(frames, scaled[0], scaled[1])
        return frames[:, top : top + sides[0], left : left + sides[1]]


@dataclass(frozen=True)
class CutRule:
    """How files become samples.

    Args:
        area: pixels of a bucket, at most.
        step: multiple of its sides: the model's, or a multiple of that for fewer buckets.
        frames: of a clip, at most; 1 takes the first frame of videos.
        frames_multiple: frames are 1 plus a multiple of it, the model's rule.
        fps: frames per second that the model was made for; videos are resampled by time.
        extraction: "head" and "full": the beginning; "chunk": pieces one after another, what is left over is dropped;
            "slide": pieces that begin ``stride`` frames after each other; "uniform": ``pieces`` pieces spread evenly
            from beginning to end.
        pieces: of "uniform".
        stride: of "slide", in frames of the sample.
        enlarge: whether files smaller than the bucket are enlarged.
        sides: (height, width) of all samples; None: sides of at most ``area`` pixels, nearest to the file's ratio.
    """

    area: int
    step: int
    frames: int = 1
    frames_multiple: int = 1
    fps: Fraction = Fraction(16)
    extraction: str = "head"
    pieces: int = 1
    enlarge: bool = False
    stride: int = 1
    sides: tuple[int, int] | None = None

    def __post_init__(self):
        if self.extraction not in FRAME_EXTRACTIONS:
            raise UsageError(f"frame_extraction: got {self.extraction!r}, allowed: {', '.join(FRAME_EXTRACTIONS)}")
        if min(self.area, self.step, self.frames, self.frames_multiple, self.pieces, self.stride) < 1 or self.fps <= 0:
            raise UsageError("area, multiples, frames, pieces, stride and frames per second must be above 0")
        if (self.frames - 1) % self.frames_multiple:
            low = choose_frames(self.frames, self.frames, self.frames_multiple)
            raise UsageError(
                f"num_frames: got {self.frames}, allowed: 1 plus a multiple of {self.frames_multiple}; try {low} or "
                f"{low + self.frames_multiple}"
            )

    def cuts(self, item: Item) -> list[Cut]:
        """The samples of a file.

        Raises:
            ArtifactError: it cannot be read. UsageError: it is too small or too short.
        """
        try:
            return self._of_video(item) if item.video else [self._of_picture(item)]
        except GenkitError as error:
            if str(place(item.path)) in str(error):
                raise
            raise type(error)(f"{place(item.path)}: {error}") from error

    def _of_picture(self, item: Item) -> Cut:
        picture = read_image(item.path, 1)
        sides = self._sides(*picture.frames.shape[1:3])
        return Cut(item, Bucket(1, *sides), (0,), picture.told)

    def _of_video(self, item: Item) -> list[Cut]:
        video = probe_video(item.path)
        sides = self._sides(video.height, video.width)
        told = video.told
        if not video.constant:
            told = (*told, "the frame rate varies; frames were chosen by their time stamps")
        resampled = video.chosen(self.fps, len(video.starts) * 64)
        # Slower films than the model's: a frame would come twice, and the clip would learn to stand still.
        if len(set(resampled)) < len(resampled):
            told = (*told, f"its {float(video.fps):.4g} frames per second are fewer than {float(self.fps):.4g}")
        length = choose_frames(len(resampled), self.frames, self.frames_multiple)
        if length == 1 and self.frames > 1:
            raise UsageError(
                f"{len(resampled)} frame(s) at {float(self.fps):.4g} frames per second; allowed: at least "
                f"{1 + self.frames_multiple}, or num_frames=1 for the first frame alone"
            )
        bucket = Bucket(length, *sides)
        return [
            Cut(item, bucket, tuple(resampled[start : start + length]), told, self.fps, start / self.fps)
            for start in self._starts(len(resampled), length)
        ]

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        if self.sides is None:
            return choose_sides(height, width, self.area, self.step, self.enlarge)
        if not self.enlarge and (height < self.sides[0] or width < self.sides[1]):
            raise UsageError(
                f"{width}x{height} pixels are fewer than {self.sides[1]}x{self.sides[0]}; allowed: larger files, or to "
                "enlarge small ones"
            )
        return self.sides

    def _starts(self, available: int, length: int) -> list[int]:
        if self.extraction == "chunk":
            return list(range(0, available - length + 1, length))
        if self.extraction == "slide":
            return list(range(0, available - length + 1, self.stride))
        if self.extraction == "uniform" and self.pieces > 1:
            last = available - length
            return sorted({round(last * piece / (self.pieces - 1)) for piece in range(self.pieces)})
        return [0]


def cut_all(folder: Folder, rule: CutRule) -> list[Cut]:
    """The samples of all files of a folder.

    Raises:
        UsageError: some files cannot be used; the message names the first ones and why.
    """
    cuts: list[Cut] = []
    wrong: list[str] = []
    for item in folder.items:
        try:
            cuts += rule.cuts(item)
        except (ArtifactError, UsageError) as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        shown = "; ".join(wrong[:_SHOWN])
        raise UsageError(f"data: {len(wrong)} of {len(folder.items)} files cannot be used: {shown}{more}")
    return cuts
