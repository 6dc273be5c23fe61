"""Files that FFmpeg reads, opened within limits and with one line for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, escaped, shortened
from genkit.reading import regular
from genkit.reading.files import place

# Playlists and the like would open other files and addresses.
OPTIONS = {"protocol_whitelist": "file"}


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A file that FFmpeg reads, with whatever it raises as one line."""
    import av

    regular(path)
    try:
        # Another program's comment may be in any encoding; only genkit's own, which is ASCII, matters.
        with av.open(f"file:{path}", metadata_errors="replace", container_options=OPTIONS) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError,
            RuntimeError, MemoryError) as error:  # fmt: skip
        if isinstance(error, PermissionError):  # the file can be read, see above: its kind is none of those allowed
            raise ArtifactError(f"cannot read {place(path)} as video or sound: it is none of a known kind") from error
        said = shortened(escaped(getattr(error, "strerror", None) or str(error) or type(error).__name__))
        raise ArtifactError(f"cannot read {place(path)} as video or sound: {said}") from error
