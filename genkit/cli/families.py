"""``genkit families``: which Diffusers models can be patched, and how their attention is laid out."""

from __future__ import annotations

from typing import Any

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table


def families(json: Json = False) -> None:
    """List the model families that attention methods can be applied to."""
    import genkit
    from genkit.pipelines.attention import plain

    entries = [plain(entry) for entry in genkit.families()]
    if json:
        print_json({"families": entries})
        return
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    print_table(columns, [[_cell(entry.get(column)) for column in columns] for entry in entries])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(part)}" for key, part in value.items())
    return "" if value is None else str(value)
