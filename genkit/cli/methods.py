"""``genkit methods``: the attention methods and their settings."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table, say

# Families that a line with a refusal names; --json has all of them.
_SHOWN = 12


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method with all its settings.")] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Show which kinds of attention of which model family each method serves.")
    ] = False,
    json: Json = False,
) -> None:
    """List the attention methods, or one method with the settings that --attention-args takes."""
    from genkit.attention import registry

    if matrix:
        _print_matrix(name, json)
        return
    found = [registry.describe_method(name)] if name else registry.methods()
    if json:
        print_json({"methods": [dataclasses.asdict(method) for method in found]})
        return
    if not name:
        rows = [
            (m.name, ", ".join(m.roles), _yes(m.needs_grid), _yes(m.trainable), _yes(m.exact), m.summary) for m in found
        ]
        print_table(["name", "works on", "needs grid", "trainable", "exact", "summary"], rows)
        say("genkit methods NAME lists a method's settings")
        return
    method = found[0]
    say(f"{method.name}: {method.summary}")
    say(f"  works on {', '.join(method.roles)} attention; source: {method.source or 'none'}")
    print_table(["setting", "type", "default", "meaning"], [dataclasses.astuple(field) for field in method.fields])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _print_matrix(name: str | None, json: bool) -> None:
    """The table method x family; below it every refusal with its reason."""
    from genkit.patching.matrix import matrix

    cells = matrix(name)
    if json:
        print_json({"matrix": [{**dataclasses.asdict(cell), "fits": cell.fits} for cell in cells]})
        return
    rows = list(dict.fromkeys(str(cell.row) for cell in cells))
    served: dict[str, dict[str, str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        served.setdefault(cell.family, {})[str(cell.row)] = " + ".join(cell.roles) or "-"
        for reason in dict.fromkeys(cell.reasons.values()):
            refused.setdefault((str(cell.row), reason), []).append(cell.family)
    print_table(["family", *rows], [(family, *(found[row] for row in rows)) for family, found in served.items()])
    for (row, reason), where in refused.items():
        more = f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else ""
        say(f"{row} on {', '.join(where[:_SHOWN])}{more}: {reason}")
