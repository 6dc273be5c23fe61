"""``genkit families``: which Diffusers models can be patched, and how their attention is laid out."""

from __future__ import annotations

import dataclasses

from genkit.cli.options import Json
from genkit.cli.output import print_json, say


def families(json: Json = False) -> None:
    """List the model families that attention methods can be applied to."""
    import genkit

    entries = [{**dataclasses.asdict(family), "methods": _methods_for(family.name)} for family in genkit.families()]
    if json:
        print_json({"families": entries})
        return
    for entry in entries:
        say(entry["name"])
        for key in ("classes", "pipelines", "roles", "methods", "branches"):
            say(f"  {key}: {', '.join(entry[key]) or 'not announced'}")
        for key in ("grid", "text", "notes"):
            if entry[key]:
                say(f"  {key}: {entry[key]}")


def _methods_for(name: str) -> list[str]:
    """The methods that, in one of their forms, serve at least one kind of attention of a family."""
    from genkit.patching.matrix import matrix

    return list(dict.fromkeys(cell.row.method for cell in matrix() if cell.family == name and cell.fits))
