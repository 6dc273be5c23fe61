"""``genkit recipes``: the shipped attention recipes, and where each of their values comes from."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table, say


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe (or YAML file) with all its values.")] = None,
    json: Json = False,
) -> None:
    """List the recipes that --recipe takes, or one recipe with the origin of every value."""
    from genkit.pipelines.recipes import ORIGINS, recipe, recipe_names

    found = [recipe(each) for each in ([name] if name else recipe_names())]
    if json:
        print_json({"recipes": [describe(each) for each in found]})
        return
    if not name:
        rows = [(each.name, *_methods(each), _origins(each), each.description) for each in found]
        print_table(["name", "method", "schedule", "origin", "description"], rows)
        say("genkit recipes NAME tells for which models, and where every value comes from")
        return
    shown = found[0]
    say(f"{shown.name}: {shown.description}")
    say(f"  for {shown.match or 'any model'}{'; named ' + ' or '.join(shown.models) if shown.models else ''}")
    if shown.made_for:
        say(f"  made for {', '.join(f'{key} {_text(value)}' for key, value in shown.made_for.items())}")
    rows = [(each.name, _text(each.value), ORIGINS.get(each.origin, "not stated"), each.note) for each in shown.values]
    print_table(["setting", "value", "origin", "where"], rows)
    for key, value in shown.measured.items():
        say(f"  measured, {key}: {_text(value)}")


def describe(found: Any) -> dict[str, Any]:
    """A recipe as plain values."""
    return {
        "name": found.name,
        "description": found.description,
        "match": None if found.match is None else dataclasses.asdict(found.match),
        "models": found.models,
        "made_for": found.made_for,
        "parts": [
            {
                "attention": part.method.name,
                "settings": part.method.settings(),
                "schedule": {} if part.schedule is None else part.schedule.to_dict(),
                "roles": part.roles,
            }
            for part in found.parts
        ],
        "values": [dataclasses.asdict(value) for value in found.values],
        "measured": found.measured,
    }


def _methods(found: Any) -> tuple[str, str]:
    methods = " + ".join(dict.fromkeys(part.method.name for part in found.parts))
    schedules = " | ".join("everywhere" if part.schedule is None else str(part.schedule) for part in found.parts)
    return methods, schedules


def _origins(found: Any) -> str:
    """How many values come from where: ``"paper 3, ours 1"``."""
    origins = [value.origin or "not stated" for value in found.values]
    return ", ".join(f"{origin} {origins.count(origin)}" for origin in dict.fromkeys(sorted(origins)))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
