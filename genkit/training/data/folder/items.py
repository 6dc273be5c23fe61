"""The files of a folder: what is in it, what each is called, and what of each is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.media.images import resized
from genkit.media.read_image import read_image
from genkit.media.read_video import probe_video, read_chosen
from genkit.reading import file_digest
from genkit.reading.files import place
from genkit.training.data.folder.buckets import Bucket, choose_frames, choose_sides, crop
from genkit.training.data.folder.captions import TABLES, read_sidecar, read_table

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
EXTRACTIONS = ("head", "chunk", "uniform")
_SHOWN = 3


@dataclass(frozen=True)
class Item:
    """One file and its caption.

    Args:
        path: of a picture or video.
        caption: in one line; may be empty.
    """

    path: Path
    caption: str

    @property
    def video(self) -> bool:
        """Whether it is a video by its name."""
        return self.path.suffix.lower() in VIDEOS

    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        return file_digest(self.path)


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Args:
        path: the folder.
        items: media with captions, sorted by name.
        unused: names of files that are neither media nor captions, and of captions without media.
    """

    path: Path
    items: tuple[Item, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """What of a file is one sample.

    Args:
        item: the file.
        bucket: size of the sample.
        frames: numbers of the video's frames, in order; (0,) of a picture.
        told: what a user should know about how the file is read.
    """

    item: Item
    bucket: Bucket
    frames: tuple[int, ...]
    told: tuple[str, ...] = ()

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
        extraction: "head": the beginning; "chunk": pieces one after another, what is left over is dropped; "uniform":
            ``pieces`` pieces spread evenly from beginning to end.
        pieces: of "uniform".
        enlarge: whether files smaller than the bucket are enlarged.
    """

    area: int
    step: int
    frames: int = 1
    frames_multiple: int = 1
    fps: Fraction = Fraction(16)
    extraction: str = "head"
    pieces: int = 1
    enlarge: bool = False

    def __post_init__(self):
        if self.extraction not in EXTRACTIONS:
            raise UsageError(f"frame_extraction: got {self.extraction!r}, allowed: {', '.join(EXTRACTIONS)}")
        if min(self.area, self.step, self.frames, self.frames_multiple, self.pieces) < 1 or self.fps <= 0:
            raise UsageError("area, multiples, frames, pieces and frames per second must be above 0")
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
        sides = choose_sides(*picture.frames.shape[1:3], self.area, self.step, self.enlarge)
        return Cut(item, Bucket(1, *sides), (0,), picture.told)

    def _of_video(self, item: Item) -> list[Cut]:
        video = probe_video(item.path)
        sides = choose_sides(video.height, video.width, self.area, self.step, self.enlarge)
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
            Cut(item, bucket, tuple(resampled[start : start + length]), told)
            for start in self._starts(len(resampled), length)
        ]

    def _starts(self, available: int, length: int) -> list[int]:
        if self.extraction == "chunk":
            return list(range(0, available - length + 1, length))
        if self.extraction == "uniform" and self.pieces > 1:
            last = available - length
            return sorted({round(last * piece / (self.pieces - 1)) for piece in range(self.pieces)})
        return [0]


def read_folder(path: str | Path, caption: str | None = None, extension: str = ".txt") -> Folder:
    """Find a folder's pictures and videos, also in folders below, with their captions.

    Args:
        path: the folder.
        caption: for every file that has no own one; None: each must have one.
        extension: of the text files beside media.

    Raises:
        UsageError: no folder, nothing in it, files without captions or with two, a table that names what is not there.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"data: {place(folder)} is no folder")
    table = read_table(folder)
    files = sorted(found for found in folder.rglob("*") if found.is_file() and not _hidden(found, folder))
    media = [found for found in files if found.suffix.lower() in PICTURES + VIDEOS]
    if not media:
        endings = ", ".join(PICTURES + VIDEOS)
        raise UsageError(f"data: {place(folder)} holds no picture and no video; allowed: files that end in {endings}")
    names = {found.relative_to(folder).as_posix(): found for found in media}
    _refuse(folder, "names files that are not there", [name for name in table or {} if name not in names])
    captions = {name: _caption(found, (table or {}).get(name), extension) for name, found in names.items()}
    if caption is None:
        text = f"has files without a caption (a {extension} beside each, {' or '.join(TABLES)}, or one caption for all)"
        _refuse(folder, text, [name for name, own in captions.items() if own is None])
    said = {name: caption if own is None else own for name, own in captions.items()}
    items = tuple(Item(found, said[name] or "") for name, found in names.items())
    used = {*media, *(found.with_suffix(extension) for found in media), *(folder / name for name in TABLES)}
    return Folder(folder, items, tuple(found.relative_to(folder).as_posix() for found in files if found not in used))


def _caption(path: Path, listed: str | None, extension: str) -> str | None:
    beside = read_sidecar(path, extension)
    if beside is not None and listed is not None and beside != listed:
        raise UsageError(f"{place(path)} has two captions: one in the table, another in the {extension} beside it")
    return listed if beside is None else beside


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _refuse(folder: Path, text: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join(place(name) for name in names[:_SHOWN])
        raise UsageError(f"data: {place(folder)} {text}: {shown}{more}")


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
