"""Opening files: ordinary ones only, bounded in size, with the reason in one line otherwise."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from genkit.errors import ArtifactError, UsageError, escaped, explain, shortened

MIB = 1 << 20
#: Characters of a path in a message.
SHOWN_PATH = 300
_KINDS = {
    stat.S_IFDIR: "it is a folder",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
}
_REASONS = {errno.ENOENT: "it does not exist", errno.ELOOP: "its links lead in a circle"}
#: An address of the net; as a path it has one slash.
_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf):/", re.IGNORECASE)
# Longer marks first: the mark of UTF-32 begins with the one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def place(path: str | Path) -> str:
    """A path for a message: control characters and line breaks written out, a very long one shortened."""
    return shortened(escaped(str(path)).replace("\n", "\\n"), SHOWN_PATH)


def called(path: str | Path, what: str = "") -> str:
    """A file for a message, behind what it is to the user where that is known: ``--source-video clip.mp4``."""
    return f"{what} {place(path)}" if what else place(path)


def reason(error: OSError) -> str:
    """Why the system refuses a file, without the error number and the path."""
    return _REASONS.get(error.errno) or error.strerror or str(error) or type(error).__name__


def open_file(path: str | Path, what: str = "") -> BinaryIO:
    """Open an ordinary file for reading.

    Args:
        path: the file; links are followed.
        what: what it is to the user, for the message: ``"prompt file"``.

    Raises:
        ArtifactError: nothing there, no permission, or something that is no ordinary file (a folder, device or pipe),
            which could be read without end.
    """
    name = called(path, what)
    if (address := _ADDRESS.match(str(path))) and not os.path.lexists(path):
        raise ArtifactError(f"cannot read {name}: it is an address ({address[1]}); download it and give the file")
    try:
        # A pipe without a writer would otherwise block in open().
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        folder = error.errno == errno.EACCES and os.path.isdir(path)
        raise ArtifactError(f"cannot read {name}: {_KINDS[stat.S_IFDIR] if folder else reason(error)}") from error
    except (ValueError, UnicodeEncodeError) as error:
        raise ArtifactError(f"cannot read {name}: its name is none that a file can have") from error
    try:
        kind = stat.S_IFMT(os.fstat(handle).st_mode)
        if kind != stat.S_IFREG:
            raise ArtifactError(f"cannot read {name}: {_KINDS.get(kind, 'it is no ordinary file')}")
        return os.fdopen(handle, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(handle)
        raise


def user_path(text: str | Path, what: str) -> Path:
    """A path that a user or a file wrote, with ``~`` for the home folder; ``what`` it is to the user.

    Raises:
        UsageError: no path can be made of it: no text, nothing in it (which would mean the current folder), a NUL, half
            a character, the home folder of nobody.
        ArtifactError: the system refuses it: a name that is too long, a folder that may not be entered.
    """
    if not isinstance(text, (str, PurePath)) or text == "":
        raise UsageError(explain(what, text, "a path that a file can have"))
    try:
        path = Path(text).expanduser()
        os.fsencode(path)
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return path  # whoever opens it tells
        raise ArtifactError(f"{what} {place(text)}: {reason(error)}") from error
    except (ValueError, RuntimeError) as error:
        raise UsageError(explain(what, str(text), "a path that a file can have")) from error
    return path


def regular(path: str | Path, what: str = "") -> Path:
    """The path of a file that can be opened; for libraries that open it themselves. Raises as :func:`open_file`."""
    open_file(path, what).close()
    return Path(path)


def read_bytes(path: str | Path, most: int, what: str = "") -> bytes:
    """The content of a file of at most ``most`` bytes.

    Raises:
        ArtifactError: as :func:`open_file`, or the file is larger.
    """
    name = called(path, what)
    with open_file(path, what) as stream:
        try:
            data = stream.read(most + 1)
        except OSError as error:
            raise ArtifactError(f"cannot read {name}: {reason(error)}") from error
    if len(data) > most:
        raise ArtifactError(
            f"cannot read {name}: it is larger than {_size(most)}, the most that is read of such a file"
        )
    return data


def read_text(path: str | Path, most: int = MIB, what: str = "") -> str:
    """A text in UTF-8, or in what its byte order mark says (which is no part of the text).

    Raises:
        ArtifactError: as :func:`read_bytes`, or the text is in another encoding or holds a NUL.
    """
    data = read_bytes(path, most, what)
    name = called(path, what)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"cannot read {name}: it is no text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ArtifactError(f"cannot read {name}: it is no text (character {text.index(chr(0))} is a NUL)")
    return text


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal. Raises as :func:`open_file`."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB"
