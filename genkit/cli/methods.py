"""``genkit methods``: the attention methods and their settings."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method with all its settings.")] = None,
    json: Json = False,
) -> None:
    """List the attention methods, or one method with the settings that --attention-args takes."""
    from genkit.attention import registry

    found = [registry.describe_method(name)] if name else registry.methods()
    if json:
        print_json({"methods": [dataclasses.asdict(method) for method in found]})
        return
    if not name:
        rows = [
            (m.name, ", ".join(m.roles), _yes(m.needs_grid), _yes(m.trainable), _yes(m.exact), m.summary) for m in found
        ]
        print_table(["name", "works on", "needs grid", "trainable", "exact", "summary"], rows)
        print("genkit methods NAME lists a method's settings")
        return
    method = found[0]
    print(f"{method.name}: {method.summary}")
    print(f"  works on {', '.join(method.roles)} attention; source: {method.source or 'none'}")
    print_table(["setting", "type", "default", "meaning"], [dataclasses.astuple(field) for field in method.fields])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
