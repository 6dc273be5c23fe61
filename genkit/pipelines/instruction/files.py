"""The files that an instruction is about: those that were given, and those that it names and that exist."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.pipelines.instruction.schema import CLIP, PICTURE, SOUND, TRACK
from genkit.pipelines.tasks.edit.settings import CLIPS
from genkit.pipelines.tasks.inputs.files import GivenFile
from genkit.reading import regular
from genkit.reading.files import place

#: Files of one instruction at most.
MOST_FILES = 64
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")
_TRACKS = (".json", ".yaml", ".yml")
#: Pictures that may be animations, which only their content tells.
_EITHER = (".gif", ".webp")
_KINDS = {
    **dict.fromkeys(_PICTURES, PICTURE), **dict.fromkeys(CLIPS, CLIP), **dict.fromkeys(_SOUNDS, SOUND),
    **dict.fromkeys(_TRACKS, TRACK),
}  # fmt: skip
_END = re.compile(rf"(?:{'|'.join(map(re.escape, _KINDS))})(?![A-Za-z0-9_])", re.IGNORECASE)
#: Characters of a name, and what a name never begins after.
_LONGEST, _INSIDE = 400, "_-./\\~"
#: Quotation marks around a name, and around words; an apostrophe within a word is none.
MARKS = ('""', "''", "“”", "„“", "‘’", "«»", "``", "<>")
_QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”\n]+”|„[^“\n]+“|«[^»\n]+»|(?<!\w)'[^'\n]+'(?!\w)|(?<!\w)‘[^’\n]+’(?!\w)")
#: Settings that name files already, whose names in the instruction are no further ones.
_NAMING = (
    "image", "last_image", "keyframe", "source_video", "control", "mask", "image_prompt", "subject", "reference",
    "audio", "video", "boxes",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file without a role yet.

    Args:
        path: as it was given. name: for people and models. kind: picture, clip, sound or track.
    """

    path: str
    name: str
    kind: str


@dataclass(frozen=True)
class Mention:
    """Where an instruction names a file.

    Args:
        start, end: its characters, those of quotation marks around it too. text: these characters.
        path: of the file that is meant. kind: see :class:`Found`.
    """

    start: int
    end: int
    text: str
    path: str
    kind: str


def files_of(settings: Any) -> tuple[Found, ...]:
    """The files of ``--file`` and those that the instruction names, in the order of the text, but for those that other
    settings, written now, name.

    Raises:
        ArtifactError: one that does not exist. UsageError: a kind of file that plays no role, or too many.
    """
    every = _by_setting(settings)
    written = [path for name, paths in every.items() if settings.asked(name) for path in paths]
    given = [_checked(text, "--file") for text in settings.file]
    named: list[str] = []
    for each in mentions(settings):
        if not any(same(each.path, other) for other in named):
            named.append(each.path)
    named += [each for each in given if not any(same(each, other) for other in named)]
    paths = [each for each in named if not any(same(each, other) for other in written)]
    if len(paths) > MOST_FILES:
        raise UsageError(explain("number of files of --instruction", len(paths), f"{MOST_FILES} or fewer"))
    names = [Path(each).name for each in paths]
    return tuple(
        Found(path, name if names.count(name) == 1 else path, _kind(path))
        for path, name in zip(paths, names, strict=True)
    )


def mentions(settings: Any) -> list[Mention]:
    """The files that the instruction names outside of quotations, in the order of the text; errors as of
    :func:`files_of`."""
    text = settings.instruction
    stored = [path for paths in _by_setting(settings).values() for path in paths]
    found = []
    for start, end in _outside(text):
        name = text[start:end]
        known = [each for each in (*settings.file, *stored) if Path(each).name == name or same(each, name)]
        path = known[0] if known else _checked(name, "file in --instruction")
        around = text[start - 1 : start] + text[end : end + 1]
        if around in MARKS:
            start, end = start - 1, end + 1
        elif around[:1] == "@":
            start -= 1
        found.append(Mention(start, end, text[start:end], path, _kind(path)))
    return found


def quotations(text: str) -> list[tuple[int, int]]:
    """Where somebody's words stand: quotation marks around more than the name of a file, and less than all."""
    names = _mentions(text)
    found = []
    for match in _QUOTED.finditer(text):
        if any((start - 1, end + 1) == match.span() for start, end in names) or match[0] == text.strip():
            continue
        found.append(match.span())
    return found


def _outside(text: str) -> list[tuple[int, int]]:
    """Names of files outside of quotations."""
    quoted = quotations(text)
    return [
        (start, end) for start, end in _mentions(text) if not any(low < end and start < high for low, high in quoted)
    ]


def _by_setting(settings: Any) -> dict[str, list[str]]:
    return {name: [_written(text) for text in _values(getattr(settings, name))] for name in _NAMING}


def _values(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _written(text: str) -> str:
    """The path in a value such as ``0=a.png@0.5``."""
    for cut in (text, text.partition("=")[2], text.rpartition("@")[0], text.partition("=")[2].rpartition("@")[0]):
        if cut and os.path.isfile(cut):
            return cut
    return text


def same(path: str, other: str) -> bool:
    """Whether two paths are one file's."""
    return os.path.abspath(os.path.expanduser(path)) == os.path.abspath(os.path.expanduser(other))


def _checked(text: str, what: str) -> str:
    """A file that can be taken, as it is; errors otherwise."""
    regular(text, what)
    _kind(text)
    return text


def _kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _KINDS:
        raise UsageError(
            explain(
                f"file {place(path)} of --instruction", suffix, "pictures, clips, sounds, and tracks (.json, .yaml)"
            )
        )
    if suffix in _EITHER and GivenFile("file", regular(path, "--file")).moving:
        return CLIP
    return _KINDS[suffix]


def _mentions(text: str) -> list[tuple[int, int]]:
    """Where names of files stand in a text: of all that end at a suffix the longest that exists, which may hold blanks;
    where none does, the last word."""
    found: list[tuple[int, int]] = []
    for match in _END.finditer(text):
        end = match.end()
        low = max(found[-1][1] if found else 0, end - _LONGEST)
        starts = [start for start in range(low, match.start()) if _begins(text, start)]
        chosen = next((start for start in starts if _exists(text[start:end])), None)
        if chosen is None:
            words = [start for start in starts if not any(map(str.isspace, text[start:end]))]
            words = [start for start in words if cased(text[start]) == cased(text[match.start() - 1])] or words
            if not words:
                continue
            chosen = words[0]
        if found and chosen < found[-1][1]:
            continue
        found.append((chosen, end))
    return found


def _begins(text: str, start: int) -> bool:
    """Whether a name can begin here: not within a word, but for scripts that set no blanks."""
    if not (text[start].isalnum() or text[start] in _INSIDE):
        return False
    before = text[start - 1] if start else " "
    if before in _INSIDE:
        return False
    return not before.isalnum() or (cased(text[start]) and not cased(before))


def cased(character: str) -> bool:
    """Whether a character is none of a script that sets no blanks."""
    return not character.isalpha() or character.lower() != character.upper()


def _exists(text: str) -> bool:
    try:
        return os.path.isfile(os.path.expanduser(text))
    except (OSError, ValueError):
        return False
