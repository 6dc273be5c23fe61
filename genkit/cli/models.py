"""``genkit models``: what can be generated with, shipped or in a folder."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table, say
from genkit.errors import UsageError, counted


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Describe and check this one: a shipped name or a model folder."),
    ] = None,
    json: Json = False,
) -> None:
    """List the shipped models, or describe and check one, shipped or in a folder, part by part."""
    from genkit.models import shipped

    found = shipped() if name is None else _one(name)
    entries = [describe(each, path) for each, path in found.items()]
    if name is not None:
        entries[0] |= _taken(*next(iter(found.items())))
    if json:
        print_json({"models": entries})
        return
    if not entries:
        say("no model is shipped in this installation; give --model a folder or a hub id")
        return
    if name is not None:
        _print_facts(entries[0])
        return
    print_table(
        ["name", "pipeline", "size", "checksums", "defaults", "description"],
        [_row(entry) for entry in entries],
    )
    say("genkit models NAME tells more about one")


def _one(name: str) -> dict[str, Path]:
    from genkit.models import locate

    place = locate(name)
    if place.path is None:
        raise UsageError(f"model {name} is a hub id; genkit models describes shipped models and folders")
    return {place.name if place.kind == "shipped" else place.path.resolve().name: place.path}


def _taken(name: str, path: Path) -> dict[str, dict[str, str]]:
    """What ``genkit generate`` can give it beside the prompt: by the pipeline class that then runs, and by flag."""
    from genkit.cli.output import quiet_libraries
    from genkit.pipelines.model import Model
    from genkit.pipelines.tasks.inputs.serving import every_input, overview

    quiet_libraries()
    model = Model.of(path, name)
    return {"takes": overview(model), "inputs": every_input(model)}


def _print_facts(entry: dict[str, Any]) -> None:
    say(f"{entry['name']}: {entry['description'] or 'no description'}")
    rows = [("pipeline", entry["pipeline"]), ("folder", entry["folder"]), ("size", f"{entry['megabytes']:.1f} MB")]
    rows += [("checksums", _checksums(entry)), ("card", entry["card"] or "none")]
    rows += [(f"takes, as {kind}", told) for kind, told in entry["takes"].items()]
    rows += [(f"input {name}", told) for name, told in entry["inputs"].items()]
    rows += [(f"part {name}", told) for name, told in entry["parts"].items()]
    rows += [(f"default {name}", value) for name, value in entry["defaults"].items()]
    rows += [(f"limit {name}", value) for name, value in entry["limits"].items()]
    print_table(["what", "value"], rows)


def _checksums(entry: dict[str, Any]) -> str:
    changed = ", ".join(entry["changed_files"])
    return {"ok": "match", "unknown": "none stored"}.get(entry["checksums"], f"changed: {changed}")


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    size = f"{entry['megabytes']:.1f} MB"
    return entry["name"], entry["pipeline"], size, _checksums(entry), _short(entry["defaults"]), entry["description"]


def describe(name: str, path: Path) -> dict[str, Any]:
    """A model folder for a listing. Raises ArtifactError when it is not whole."""
    from genkit.models import check_folder, read_sidecar, verify_checksums
    from genkit.models.check import parts_of

    state, details = verify_checksums(path)
    index, sidecar = check_folder(path), read_sidecar(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "name": name,
        "folder": str(path),
        "pipeline": index["_class_name"],
        "parts": {part: _part(path / part, class_name) for part, class_name in parts_of(index).items()},
        "card": str(path / "README.md") if (path / "README.md").is_file() else None,
        "megabytes": round(size / 1e6, 2),
        "description": sidecar.description,
        "defaults": sidecar.defaults,
        "limits": sidecar.limits,
        "checksums": state,
        "changed_files": details if state == "changed" else [],
    }


def _part(folder: Path, class_name: str) -> str:
    """A part's class, with the number of its weights where it has any."""
    from genkit.models import check_safetensors

    headers = [check_safetensors(file) for file in sorted(folder.glob("*.safetensors"))]
    tensors = [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]
    count = sum(prod(tensor.shape) for tensor in tensors)
    return f"{class_name}, {count / 1e6:.2f} million weights" if tensors else class_name


def _short(defaults: dict[str, Any]) -> str:
    shape = "x".join(str(defaults[key]) for key in ("width", "height", "num_frames") if key in defaults)
    steps = counted(defaults["steps"], "step") if "steps" in defaults else ""
    return ", ".join(part for part in (shape, steps) if part)
