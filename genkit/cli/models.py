"""``genkit models``: what can be generated with, shipped or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table
from genkit.errors import ArtifactError


def models(
    folder: Annotated[Path | None, typer.Argument(help="Describe and check this model folder instead.")] = None,
    json: Json = False,
) -> None:
    """List the shipped models, or check a local model folder part by part."""
    from genkit.models import shipped

    if folder is not None and not folder.is_dir():
        raise ArtifactError(f"model folder {folder} does not exist")
    entries = [describe(name, path) for name, path in ({folder.name: folder} if folder else shipped()).items()]
    if json:
        print_json({"models": entries})
        return
    if not entries:
        print("no model is shipped in this installation; give --model a folder or a hub id")
        return
    print_table(
        ["name", "pipeline", "size", "checksums", "defaults", "description"],
        [_row(entry) for entry in entries],
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    changed = ", ".join(entry["changed_files"])
    checksums = {"ok": "match", "unknown": "none stored"}.get(entry["checksums"], f"changed: {changed}")
    size = f"{entry['megabytes']:.1f} MB"
    return entry["name"], entry["pipeline"], size, checksums, _short(entry["defaults"]), entry["description"]


def describe(name: str, path: Path) -> dict[str, Any]:
    """A model folder for a listing. Raises ArtifactError when it is not whole."""
    from genkit.models import check_folder, read_sidecar, verify_checksums

    state, details = verify_checksums(path)
    index, sidecar = check_folder(path), read_sidecar(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "name": name,
        "folder": str(path),
        "pipeline": index["_class_name"],
        "megabytes": round(size / 1e6, 2),
        "description": sidecar.description,
        "defaults": sidecar.defaults,
        "limits": sidecar.limits,
        "checksums": state,
        "changed_files": details if state == "changed" else [],
    }


def _short(defaults: dict[str, Any]) -> str:
    shape = "x".join(str(defaults[key]) for key in ("width", "height", "num_frames") if key in defaults)
    steps = f"{defaults['steps']} steps" if "steps" in defaults else ""
    return ", ".join(part for part in (shape, steps) if part)
