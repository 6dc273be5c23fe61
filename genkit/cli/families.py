"""``genkit families``: which Diffusers models can be patched, and how their attention is laid out."""

from __future__ import annotations

from typing import Any

from genkit.cli.options import Json
from genkit.cli.output import print_json


def families(json: Json = False) -> None:
    """List the model families that attention methods can be applied to."""
    import genkit

    entries = [_entry(family) for family in genkit.families()]
    if json:
        print_json({"families": entries})
        return
    for entry in entries:
        print(entry["name"])
        for key in ("classes", "pipelines", "roles", "branches"):
            print(f"  {key}: {', '.join(entry[key]) or 'not announced'}")
        for key in ("grid", "text", "notes"):
            if entry[key]:
                print(f"  {key}: {entry[key]}")


def _entry(family: Any) -> dict[str, Any]:
    return {
        "name": family.name,
        "classes": list(family.classes),
        "pipelines": list(family.pipelines),
        "roles": list(dict.fromkeys(rule.role for rule in family.rules)),
        "branches": list(family.branches),
        "grid": family.grid,
        "text": family.text,
        "notes": family.notes,
    }
