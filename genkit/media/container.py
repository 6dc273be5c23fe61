"""Files that FFmpeg reads, opened within limits and with one line for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, escaped, shortened
from genkit.reading import regular
from genkit.reading.files import called

# Playlists and the like would open other files and addresses.
OPTIONS = {"protocol_whitelist": "file"}


@contextmanager
def opened(path: str | Path, what: str = "") -> Iterator[Any]:
    """A file that FFmpeg reads, with whatever it raises as one line; ``what`` it is to the user, for that line."""
    import av

    regular(path, what)
    try:
        # Another program's comment may be in any encoding; only genkit's own, which is ASCII, matters.
        with av.open(f"file:{path}", metadata_errors="replace", container_options=OPTIONS) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError,
            RuntimeError, MemoryError) as error:  # fmt: skip
        whose = f"cannot read {called(path, what)} as video or sound"
        if isinstance(error, PermissionError):  # the file can be read, see above: its kind is none of those allowed
            raise ArtifactError(f"{whose}: it is none of a known kind") from error
        if isinstance(error, av.error.InvalidDataError):
            raise ArtifactError(f"{whose}: it is damaged, or none of a known kind; get the file again") from error
        said = shortened(escaped(getattr(error, "strerror", None) or str(error) or type(error).__name__))
        raise ArtifactError(f"{whose}: {said}") from error
