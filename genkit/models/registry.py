"""Which models are shipped with the package, and what a model name means: shipped, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from genkit.errors import ArtifactError, UsageError, explain

ROOT = Path(__file__).parent
DEFAULT_MODEL = "toy-video"
CHECKSUMS = "SHA256SUMS"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


@dataclass(frozen=True)
class Location:
    """Where a model name leads.

    Args:
        kind: ``"shipped"``, ``"folder"`` or ``"hub"``.
        name: the name as given, without a revision.
        path: the folder, None for a hub id.
        revision: branch, tag or commit of a hub id written as ``owner/name@revision``.
    """

    kind: str
    name: str
    path: Path | None = None
    revision: str | None = None


def shipped(root: Path = ROOT) -> dict[str, Path]:
    """Names and folders of the models in the package: every folder there with a ``model_index.json``, by name.

    Names are lower-case words joined by dashes; a folder such as ``toy-video.part`` that is still being written is no
    model.
    """
    folders = (path.parent for path in sorted(root.glob("*/model_index.json")))
    return {folder.name: folder for folder in folders if NAME.fullmatch(folder.name)}


def locate(model: str) -> Location:
    """Resolve a model name. A shipped name wins over a folder of the same name; write ``./name`` for the folder.

    Raises:
        UsageError: a name that is neither shipped nor a folder nor of the form ``owner/name``.
        ArtifactError: a path to a folder that does not exist, or to a single file.
    """
    models = shipped()
    if model in models:
        return Location("shipped", model, models[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return Location("folder", model, path)
    if path.is_file():
        raise ArtifactError(f"model {model} is a file; genkit loads Diffusers folders (with model_index.json)")
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        raise ArtifactError(f"model folder {model} does not exist")
    if HUB_ID.fullmatch(model):
        name, _, revision = model.partition("@")
        return Location("hub", name, revision=revision or None)
    allowed = f"{', '.join(models) or 'no model is shipped here'}; a local Diffusers folder; a hub id owner/name"
    hint = explain("model", model, list(models))
    suggestion = hint.partition("; ")[2]
    raise UsageError(explain("model", model, allowed, suggestion or None))


def write_checksums(folder: Path) -> Path:
    """Write ``SHA256SUMS`` for every file of a model folder, in the format that ``sha256sum -c`` reads."""
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}" for path in _files(folder)]
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
    expected = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    changed = [
        name for name, digest in expected.items() if not (folder / name).is_file() or _digest(folder / name) != digest
    ]
    return ("changed", changed) if changed else ("ok", [])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
