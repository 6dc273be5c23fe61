"""One door for every format: write an output with its settings atomically, read frames or settings back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from genkit.errors import ArtifactError, UsageError, counted, explain
from genkit.media.atomic import Files
from genkit.media.formats import FRAME_NAME, PATTERN, check_output, dump, format_of, frame_paths, sidecar_of, stale
from genkit.media.images import write_gif, write_png, write_webp
from genkit.media.read_image import read_comment, read_frames, read_image
from genkit.media.read_video import read_mp4, read_video_comment
from genkit.media.video import check_frames, write_mp4
from genkit.reading import parse_json, read_json, user_path
from genkit.reading.files import place

_RECORD = 1 << 22  # bytes of a record
ONLY_MP4_HAS_SOUND = "only .mp4 carries sound"


@dataclass(frozen=True)
class Media:
    """What a file holds.

    Args:
        frames: uint8 (T, H, W, 3).
        fps: exact frames per second, None for a single image or numbered frames.
        audio: float32 (S, channels) in [-1, 1] or None.
        sample_rate: samples per second of ``audio`` or None.
        settings: the record that genkit stored in the file, or None when another program made it.
    """

    frames: np.ndarray
    fps: Fraction | None
    audio: np.ndarray | None = None
    sample_rate: int | None = None
    settings: dict | None = None


def write_media(
    path: str | Path,
    frames: np.ndarray,
    fps: float | str | Fraction | None = None,
    *,
    settings: dict | None = None,
    notes: dict | None = None,
    audio: np.ndarray | None = None,
    sample_rate: int | None = None,
    force: bool = False,
) -> list[Path]:
    """Write frames to ``path`` in the format its name asks for, together with a ``.json`` beside it, all or nothing.

    Args:
        path: ``*.mp4``, ``*.gif``, ``*.webp``, ``*.png`` for one frame, ``name-%04d.png`` for numbered frames, or a
        folder. frames: uint8 (T, H, W, 3).
        fps: frames per second; required for the moving formats.
        settings: what made the frames; stored inside the file and beside it. It should be the same for the same
        request:
            equal frames and settings give equal bytes.
        notes: what only this run knows (seconds, measured densities); stored beside the file only.
        audio: float samples (S,) or (S, channels); ``.mp4`` only.
        sample_rate: of ``audio``.
        force: replace what exists.

    Returns:
        The files written, the sidecar last (absent without ``settings`` and ``notes``).

    Raises:
        UsageError: unknown format, existing output without ``force``, several frames for one ``.png``, wrong arrays.
        ArtifactError: the disk is full, the folder unwritable: nothing is left behind.
    """
    path = Path(path)
    kind = format_of(path)
    frames = check_frames(frames)
    if kind in ("mp4", "gif", "webp") and fps is None:
        raise UsageError(explain("fps", fps, f"a number for .{kind}"))
    if kind == "png" and len(frames) > 1:
        raise UsageError(
            f"{path} holds one image, but there are {counted(len(frames), 'frame')}; "
            f"use a pattern such as {path.stem}-%04d.png, a folder, or .mp4"
        )
    if audio is not None and kind != "mp4":
        raise UsageError(f"{ONLY_MP4_HAS_SOUND}; got {path}, choose a name ending in .mp4")
    check_output(path, force=force)
    # Frames carry a text in any case: it tells them from the files of others.
    several = kind in ("folder", "pattern")
    comment = dump(settings if settings is not None else {}) if several or settings is not None else None
    with Files() as files:
        written = _write(files, kind, path, frames, fps, comment, audio, sample_rate)
        if settings is not None or notes is not None:
            beside = sidecar_of(path)
            text = json.dumps(
                {**(settings or {}), **({"notes": notes} if notes is not None else {})}, indent=2, sort_keys=True
            )
            files.new(beside).write_text(text + "\n", encoding="utf-8")
            written.append(beside)
    for left in stale(path, written):
        left.unlink()
    return written


def _write(
    files: Files, kind: str, path: Path, frames: np.ndarray, fps, comment: str | None, audio, sample_rate
) -> list[Path]:
    if kind == "folder":
        folder = files.new(path)
        folder.mkdir()
        for index, frame in enumerate(frames):
            write_png(folder / (FRAME_NAME % index), frame, comment=comment)
        return [path]
    if kind == "pattern":
        finals = frame_paths(path, len(frames))
        for final, frame in zip(finals, frames, strict=True):
            write_png(files.new(final), frame, comment=comment)
        return finals
    temporary = files.new(path)
    if kind == "mp4":
        write_mp4(temporary, frames, fps, audio=audio, sample_rate=sample_rate, comment=comment)
    elif kind == "png":
        write_png(temporary, frames[0], comment=comment)
    else:
        {"gif": write_gif, "webp": write_webp}[kind](temporary, frames, fps, comment=comment)
    return [path]


def read_media(path: str | Path) -> Media:
    """Read any output back: frames, frame rate, sound and the settings stored inside.

    Raises:
        ArtifactError: missing or unreadable file.
    """
    path = Path(path)
    kind = format_of(path)
    if kind in ("folder", "pattern"):
        frames, comment = read_frames(_numbered_files(path, kind))
        return Media(frames, None, settings=_parse(comment, path))
    if kind == "mp4":
        frames, fps, audio, sample_rate, comment = read_mp4(path)
        return Media(frames, fps, audio, sample_rate, _parse(comment, path))
    picture = read_image(path)
    return Media(picture.frames, picture.fps, settings=_parse(picture.comment, path))


def read_settings(path: str | Path) -> dict:
    """The settings record inside an output, or in a ``.json`` written beside one.

    Raises:
        ArtifactError: missing file, or a file that carries no genkit settings.
    """
    path = Path(path)
    record = _record(path)
    if record is None:
        raise ArtifactError(f"{path} carries no genkit settings; --from needs a file that genkit wrote, or its .json")
    return {name: value for name, value in record.items() if name != "notes"}


def _record(path: Path) -> dict | None:
    """The record in an output or sidecar, or None; decodes no frame that it need not."""
    path = user_path(path, "file")
    if path.suffix.lower() == ".json":
        return _as_record(read_json(path, most=_RECORD))
    try:
        kind = format_of(path)
    except UsageError:  # a kind of file that genkit does not write: it carries no record
        return None
    if kind in ("folder", "pattern"):
        return _parse(read_comment(_numbered_files(path, kind)[0]), path)
    return _parse(read_video_comment(path) if kind == "mp4" else read_comment(path), path)


def _numbered_files(path: Path, kind: str) -> list[Path]:
    if kind == "folder":
        found = sorted(path.glob("frame-*.png"))
        if not found:
            raise ArtifactError(f"{path} is no folder of frames that genkit wrote (frame-0000.png, ...)")
        return found
    before, after = PATTERN.split(path.name)
    numbers = {}
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        middle = entry.name[len(before) : len(entry.name) - len(after)]
        if entry.name == before + middle + after and middle.isdigit():
            numbers[int(middle)] = entry
    if not numbers:
        raise ArtifactError(f"no file matches {path}")
    return [numbers[key] for key in sorted(numbers)]


def _parse(text: str | None, path: Path) -> dict | None:
    """A genkit record from text, or None when the text is anything else (another program's comment)."""
    if not text or not text.lstrip().startswith("{") or len(text) > _RECORD:
        return None
    try:
        return _as_record(parse_json(text, place(path)))
    except ArtifactError:
        return None


def _as_record(value: object) -> dict | None:
    return value if isinstance(value, dict) and "settings" in value else None
