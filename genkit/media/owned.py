"""Which files genkit wrote itself: only those may be removed or replaced where nobody named them one by one."""

from __future__ import annotations

import struct
from pathlib import Path

from genkit.errors import ArtifactError
from genkit.media.images import PNG_KEY
from genkit.reading import open_file, read_json

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
#: Chunks before the picture that are looked at; ours is the second.
_CHUNKS = 64


def wrote_picture(path: Path) -> bool:
    """Whether a .png carries the text that genkit puts into every frame it writes."""
    mark = PNG_KEY.encode() + b"\0"
    try:
        with open_file(path) as stream:
            if stream.read(8) != _SIGNATURE:
                return False
            for _ in range(_CHUNKS):
                head = stream.read(8)
                if len(head) < 8 or head[4:] == b"IDAT":
                    return False
                (length,) = struct.unpack(">I", head[:4])
                if head[4:] in _TEXTS and stream.read(len(mark)) == mark:
                    return True
                stream.seek(length + 4 - (len(mark) if head[4:] in _TEXTS else 0), 1)
    except (ArtifactError, OSError):
        return False
    return False


def wrote_record(path: Path) -> bool:
    """Whether a .json is a record that genkit writes beside an output."""
    try:
        record = read_json(path, most=1 << 22)
    except ArtifactError:
        return False
    return isinstance(record, dict) and isinstance(record.get("settings", record.get("notes")), dict)
