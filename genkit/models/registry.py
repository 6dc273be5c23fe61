"""Which models are shipped with the package, and what a model name means: shipped, a local folder, or a hub id."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from genkit import plugins
from genkit.errors import ArtifactError, UsageError, explain
from genkit.plugins import PluginError
from genkit.reading import file_digest, read_text, user_path
from genkit.reading.files import place

ROOT = Path(__file__).parent
DEFAULT_MODEL = "toy-video"
CHECKSUMS = "SHA256SUMS"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


@dataclass(frozen=True)
class Location:
    """Where a model name leads.

    Args:
        kind: ``"shipped"``, ``"folder"``, ``"file"`` or ``"hub"``.
        name: the name as given, without a revision.
        path: the folder or file, None for a hub id.
        revision: branch, tag or commit of a hub id written as ``owner/name@revision``.
    """

    kind: str
    name: str
    path: Path | None = None
    revision: str | None = None


def shipped(root: Path | None = None) -> dict[str, Path]:
    """Names and folders of the models in the package and in those that offer some under ``genkit.models``: every
    folder there with a ``model_index.json``, by name. A model of genkit's own wins over one of the same name.

    Names are lower-case words joined by dashes; a folder such as ``toy-video.part`` that is still being written is no
    model.

    Args:
        root: look into this folder alone.
    """
    if root is not None:
        return _models(root)
    found: dict[str, Path] = {}
    for place in _offered():
        found = {**_models(place), **found}
    return dict(sorted({**found, **_models(ROOT)}.items()))


def _models(root: Path) -> dict[str, Path]:
    folders = (path.parent for path in sorted(root.glob("*/model_index.json")))
    return {folder.name: folder for folder in folders if NAME.fullmatch(folder.name)}


@functools.cache
def _offered() -> tuple[Path, ...]:
    """Folders with models of other packages, by name of the entry point; none of the packages is imported."""
    places = []
    for plugin in plugins.found(plugins.MODELS).values():
        try:
            places.append(plugin.folder())
        except PluginError as error:
            plugins.left_out(error)
    return tuple(places)


def locate(model: str, what: str = "model", files: bool = False) -> Location:
    """Resolve a model name. A shipped name wins over a folder of the same name; write ``./name`` for the folder.

    Args:
        model: the name. what: it is to the user, for messages.
        files: whether a whole model in one file will do.

    Raises:
        UsageError: a name that is neither shipped nor a folder nor of the form ``owner/name``.
        ArtifactError: a path to a folder that does not exist, or to a single file.
    """
    models = shipped()
    if model in models:
        return Location("shipped", model, models[model])
    path = user_path(model, what)
    if path.is_dir():
        return Location("folder", model, path)
    if path.is_file() and files:
        return Location("file", model, path)
    if path.is_file():
        raise ArtifactError(f"{what} {place(model)} is a file; genkit loads Diffusers folders (with model_index.json)")
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        raise ArtifactError(f"{what} folder {place(model)} does not exist")
    if HUB_ID.fullmatch(model):
        name, _, revision = model.partition("@")
        return Location("hub", name, revision=revision or None)
    allowed = f"{', '.join(models) or 'no model is shipped here'}; a local Diffusers folder; a hub id owner/name"
    hint = explain(what, model, list(models))
    suggestion = hint.partition("; ")[2]
    raise UsageError(explain(what, model, allowed, suggestion or None))


def write_checksums(folder: Path) -> Path:
    """Write ``SHA256SUMS`` for every file of a model folder, in the format that ``sha256sum -c`` reads."""
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}" for path in _files(folder)]
    target = folder / CHECKSUMS
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def verify_checksums(folder: Path) -> tuple[str, list[str]]:
    """Compare a model folder with its ``SHA256SUMS``.

    Returns:
        ``("ok", [])``, ``("unknown", [reason])`` when there is no list, or ``("changed", [file, ...])``.
    """
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return "unknown", [f"no {CHECKSUMS} in the folder"]
    expected = _read_checksums(listing)
    changed = [name for name, digest in expected.items() if not _matches(folder / name, digest)]
    return ("changed", changed) if changed else ("ok", [])


def _read_checksums(listing: Path) -> dict[str, str]:
    """Digests by file name; ArtifactError for a line that is none, or that names a file outside of the folder."""
    expected = {}
    for number, line in enumerate(read_text(listing).splitlines(), 1):
        found = LINE.fullmatch(line)
        name = found.group(2) if found else ""
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            form = "64 hexadecimal digits, two spaces and a file in the folder"
            raise ArtifactError(explain(f"{place(listing)}, line {number}", line, form))
        expected[name] = found.group(1)
    return expected


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
