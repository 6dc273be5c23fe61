"""What of a folder's files is trained on: sizes and frames of every sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from genkit.errors import GenkitError, UsageError, counted
from genkit.media.read_image import read_image
from genkit.media.read_video import Video, probe_video
from genkit.media.sound import sound_seconds
from genkit.reading.files import place
from genkit.training.data.folder.buckets import Bucket, choose_frames, choose_sides
from genkit.training.data.folder.items import Item
from genkit.training.data.source import FRAME_EXTRACTIONS, REFUSE, SILENCE

#: Where a sample's sound comes from.
OWN_SOUND = "own"


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
        original: (height, width) of the file.
        sound: :data:`OWN_SOUND`, "silence", or None for a sample that is trained on without sound.
    """

    item: Item
    bucket: Bucket
    frames: tuple[int, ...]
    told: tuple[str, ...] = ()
    fps: Fraction | None = None
    start: Fraction = Fraction(0)
    original: tuple[int, int] = (0, 0)
    sound: str | None = None

    @property
    def shelf(self) -> str:
        """Samples of one shelf can be stacked to a batch."""
        rate = "" if self.fps is None else f" at {float(self.fps):g} fps"
        return f"{self.bucket}{rate}{' with sound' if self.sound else ''}"

    @property
    def name(self) -> str:
        """The file, and where in it the sample begins."""
        return place(self.item.path) + (f" from {float(self.start):.4g} s" if self.start else "")

    @property
    def seconds(self) -> Fraction:
        """How long the sample is; 0 of a picture."""
        return Fraction(0) if self.fps is None else self.bucket.frames / self.fps

    def of(self, path: Path) -> Cut:
        """The same cut of another file."""
        return replace(self, item=Item(path, ""))


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
        missing_audio: for models with sound, what is done with clips without: "refuse", "video" (they are trained on
            without sound) or "silence". None: no sound is read.
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
    missing_audio: str | None = None

    def __post_init__(self):
        if self.extraction not in FRAME_EXTRACTIONS:
            raise UsageError(f"frame_extraction: got {self.extraction!r}, allowed: {', '.join(FRAME_EXTRACTIONS)}")
        if min(self.area, self.step, self.frames, self.frames_multiple, self.pieces, self.stride) < 1 or self.fps <= 0:
            raise UsageError("area, multiples, frames, pieces, stride and frames per second must be above 0")
        if self.frames == 1 and self.extraction in ("chunk", "slide"):
            raise UsageError(
                f"num_frames: got 1 with frame_extraction {self.extraction}, which would make a sample of every frame; "
                "allowed: longer clips, or head"
            )
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
        original = picture.frames.shape[1:3]
        return Cut(item, Bucket(1, *self._sides(*original)), (0,), picture.told, original=original)

    def _of_video(self, item: Item) -> list[Cut]:
        video = probe_video(item.path)
        if video.missing:
            raise UsageError(f"the file is cut off: it lacks {counted(video.missing, 'frame')} that it promises")
        sides = self._sides(video.height, video.width)
        resampled = video.chosen(self.fps, len(video.starts) * 64)
        length = choose_frames(len(resampled), self.frames, self.frames_multiple)
        if length == 1 and self.frames > 1:
            raise UsageError(
                f"{counted(len(resampled), 'frame')} at {float(self.fps):.4g} frames per second; allowed: at least "
                f"{1 + self.frames_multiple}, or num_frames=1 for the first frame alone"
            )
        told, heard = self._told(video, resampled), self._heard(item.path)
        found = []
        for start in self._starts(len(resampled), length):
            begin, frames = start / self.fps, tuple(resampled[start : start + length])
            # Where nothing is heard any more there is no sound to learn from.
            sound = heard[0] if heard[0] != OWN_SOUND or begin < heard[1] else self._without(begin)
            bucket, original = Bucket(length, *sides), (video.height, video.width)
            if length == 1:
                found.append(Cut(item, bucket, frames, told, None, begin, original))
            else:
                more = (*told, *self._told_of_sound(sound, begin))
                found.append(Cut(item, bucket, frames, more, self.fps, begin, original, sound))
        return found

    def _told(self, video: Video, resampled: list[int]) -> tuple[str, ...]:
        told = list(video.told)
        if not video.constant:
            told.append("the frame rate varies; frames were chosen by their time stamps")
        elif video.fps != self.fps and self.frames > 1:
            told.append(f"brought from {float(video.fps):.4g} to {float(self.fps):.4g} frames per second by time")
        # A slower film than the model's: frames come twice, and the clip stands still in between.
        if len(set(resampled)) < len(resampled) and self.frames > 1:
            told.append(f"its {float(video.fps):.4g} frames per second are fewer than {float(self.fps):.4g}")
        return tuple(told)

    def _heard(self, path: Path) -> tuple[str | None, float]:
        """Where a clip's sound comes from, and how many seconds it has."""
        seconds = None if self.missing_audio is None else sound_seconds(path)
        return (self._without(), 0.0) if seconds is None else (OWN_SOUND, seconds)

    def _told_of_sound(self, sound: str | None, begin: Fraction) -> tuple[str, ...]:
        """What is done with a clip that lacks sound, for models with sound."""
        if self.missing_audio is None or sound == OWN_SOUND:
            return ()
        since = f" from {float(begin):.4g} s on" if begin else ""
        done = "silence is trained in its place" if sound == SILENCE else "the video alone is trained with it"
        return (f"there is no sound{since}: {done} (missing_audio)",)

    def _without(self, begin: Fraction = Fraction(0)) -> str | None:
        if self.missing_audio == REFUSE:
            since = f" from {float(begin):.4g} s on" if begin else ""
            raise UsageError(f"it has no sound{since}; allowed: missing_audio=video or silence, or clips with sound")
        return SILENCE if self.missing_audio == SILENCE else None

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
