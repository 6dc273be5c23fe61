"""What a user gives to a model that makes video and sound: one of the two, read from a file and fitted to the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genkit.errors import UnsupportedError, UsageError, counted
from genkit.families.lookup import able, can
from genkit.families.sizes import SizeRule
from genkit.media import AAC_RATES, Video, probe_video, read_chosen, read_sound, resample, resized
from genkit.pipelines.kinds import AUDIO_VIDEO
from genkit.pipelines.outputs import fit_sound
from genkit.reading import file_digest, regular, user_path

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import GenerateSettings

# Pipelines whose parts genkit.pipelines.tasks.audio_video.complete can drive.
TASK = "given_half"
#: What these pipelines make when nobody says how many frames.
USUAL_FRAMES = 121
_MP4_RATE = 48000
_USUAL_SECONDS = 600.0


@dataclass(frozen=True)
class Given:
    """A given half of an audio-video run; the other half is made for it.

    Args:
        frames: uint8 (T, H, W, 3), or None when the sound is given.
        fps: of the frames as they were read.
        sound: float32 (S, channels) in -1..1, or None when the video is given.
        rate: samples per second of the sound.
        source: the file.
        told: what was changed to make it fit, one line each.
        video: what the file of a given video holds; its frames are decoded by :meth:`fitted`, as many as are used.
    """

    frames: np.ndarray | None = None
    fps: Fraction | None = None
    sound: np.ndarray | None = None
    rate: int | None = None
    source: Path | None = None
    told: tuple[str, ...] = field(default=())
    video: Video | None = None

    @property
    def seconds(self) -> Fraction:
        """How long it lasts."""
        if self.video is not None:
            return self.video.seconds
        if self.frames is not None:
            return Fraction(len(self.frames)) / self.fps
        return Fraction(len(self.sound), self.rate)

    def fingerprint(self) -> str:
        """A short digest of the file."""
        return file_digest(self.source)[:16]

    def num_frames(self, fps: Fraction, rule: SizeRule | None, most: int | None) -> int:
        """The number of frames that suits its length best and the model accepts.

        Args:
            fps: of the run.
            rule: the model's rule, None when only the pipeline knows.
            most: the largest number, None for no limit.
        """
        step = rule.frames_multiple if rule is not None else 1
        wanted = max(1 + step, 1 + step * round((self.seconds * fps - 1) / step))
        return wanted if most is None or wanted <= most else 1 + (most - 1) // step * step

    def fitted(self, num_frames: int, fps: Fraction, height: int, width: int) -> Given:
        """The same, as long and as large as the run; ``told`` says what that took."""
        if self.sound is None:
            return self._fitted_video(num_frames, fps, height, width)
        return self._fitted_sound(num_frames, fps)

    def _fitted_sound(self, num_frames: int, fps: Fraction) -> Given:
        told, sound, rate = [], self.sound, self.rate
        if rate not in AAC_RATES:
            told.append(f"the sound was resampled from {rate} to {_MP4_RATE} Hz, since .mp4 does not hold its rate")
            sound, rate = resample(sound, rate, _MP4_RATE), _MP4_RATE
        length = len(sound)
        sound = fit_sound(sound, rate, num_frames, fps)
        lasts = f"the {float(Fraction(num_frames) / fps):.3f} s of {counted(num_frames, 'frame')} at {fps} fps"
        if len(sound) < length:
            told.append(f"the sound lasts {length / rate:.3f} s and was cut to {lasts}")
        elif len(sound) > length:
            told.append(f"the sound lasts {length / rate:.3f} s; silence was added for {lasts}")
        return replace(self, sound=sound, rate=rate, told=tuple(told))

    def _fitted_video(self, num_frames: int, fps: Fraction, height: int, width: int) -> Given:
        clip = self.video if self.video is not None else _in_memory(self.frames, self.fps)
        told, count = list(clip.told), len(clip.starts)
        if clip.fps != fps or not clip.constant:
            count = max(1, round(clip.seconds * fps))
            kind = f"{clip.fps} frames per second" if clip.constant else "a varying frame rate"
            told.append(
                f"the video has {kind}; {counted(count, 'of its frames was', 'of its frames were')} taken for {fps} fps"
            )
        if count > num_frames:
            told.append(f"the video has {counted(count, 'frame')}; the first {num_frames} were taken")
        elif count < num_frames:
            told.append(f"the video has {counted(count, 'frame')}; the last one was repeated up to {num_frames}")
        if (clip.height, clip.width) != (height, width):
            told.append(f"the video was resized from {clip.width}x{clip.height} to {width}x{height}")
        chosen = clip.chosen(fps, num_frames)
        if self.video is not None:
            frames = read_chosen(clip, chosen, (height, width))
        else:
            frames = self.frames[chosen]
            frames = frames if frames.shape[1:3] == (height, width) else resized(frames, height, width)
        frames = frames[np.minimum(np.arange(num_frames), len(frames) - 1)]
        return replace(self, frames=np.ascontiguousarray(frames), fps=fps, told=tuple(told))


def _in_memory(frames: np.ndarray, fps: Fraction) -> Video:
    """Frames of a constant rate, described as those of a file are."""
    starts = tuple(index / fps for index in range(len(frames)))
    return Video(Path(), fps, starts, len(frames) / fps, *frames.shape[1:3])


def usual_frames(model: Model, own: int | None) -> int:
    """How many frames a run has at most when nobody says: the model's limit or, without one, its usual number."""
    return model.sidecar.limits.get("max_frames") or own or USUAL_FRAMES


def read_given(flag: str, name: str, model: Model, longest: float) -> Given:
    """Read the half that is given.

    Args:
        flag: ``"--audio"`` or ``"--video"``.
        name: the file.
        model: that the run is made with.
        longest: seconds of sound to decode.

    Raises:
        UsageError: the model makes no sound.
        UnsupportedError: it makes sound, but its pipeline is none of LTX-2's.
        ArtifactError: the file is missing or cannot be read.
    """
    if model.kind is not AUDIO_VIDEO:
        raise UsageError(f"{flag}: {model.class_name} makes no sound; choose a model of video and sound")
    if not can(TASK, model.class_name):
        raise UnsupportedError(f"{flag} is known for {', '.join(able(TASK))}, not for {model.class_name}")
    path = regular(user_path(name, flag), flag)
    if flag == "--audio":
        sound, rate = read_sound(path, longest, flag)
        return Given(sound=sound, rate=rate, source=path)
    video = probe_video(path, flag)
    return Given(fps=video.fps, source=path, video=video)


def longest(settings: GenerateSettings) -> float:
    """Seconds of sound to decode: what the run lasts where that is known, and never less than ten minutes."""
    known = settings.num_frames is not None and settings.fps is not None
    return max(_USUAL_SECONDS, settings.num_frames / Fraction(settings.fps)) if known else _USUAL_SECONDS
