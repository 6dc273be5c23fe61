"""``genkit families``: which Diffusers models can be patched, and how their attention is laid out."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Json
from genkit.cli.output import print_json, print_table, quiet_libraries, say

if TYPE_CHECKING:
    from genkit.families import FamilyInfo

_KINDS = ("video", "image", "sound")


def families(
    name: Annotated[
        str | None, typer.Argument(help="Show this family, or that of a model class or pipeline, in full.")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Tell what the attention of a model is like, known or not, from its configuration (no weights are "
            "read), and print a draft of its record.",
        ),
    ] = None,
    model_class: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="With --explain: the class, where Diffusers has it not.")
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHAPE", help="With --explain: a forward argument that cannot be guessed (2x13x64)."),
    ] = None,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="Show which tasks run on which families, or on NAME, and by which pipeline.")
    ] = False,
    json: Json = False,
) -> None:
    """List the model families that attention methods can be applied to, or one of them in full."""
    if explain is not None:
        from genkit.cli.explain import explain_folder

        explain_folder(explain, name, model_class, input or [], json)
        return
    if model_class is not None or input:
        from genkit.errors import UsageError

        raise UsageError("--model-class and --input belong to --explain FOLDER")
    if tasks:
        _show_tasks(name, json)
        return
    import genkit
    from genkit.families.out_of_scope import OUT_OF_SCOPE

    found = list(genkit.families())
    if name is not None:
        found = [_named(name, found)]
    if json or name is not None:
        methods = _methods_by_family()
        entries = [{**dataclasses.asdict(family), "methods": methods.get(family.name, [])} for family in found]
        if json:
            print_json({"families": entries} | ({} if name else {"out_of_scope": OUT_OF_SCOPE}))
            return
        for entry in entries:
            _print_whole(entry)
        return
    for kind in _KINDS:
        ordered = sorted(found, key=lambda family: family.name.lower())
        rows = [(each.name, ", ".join(each.roles), ", ".join(each.classes)) for each in ordered if each.kind == kind]
        if rows:
            print_table([kind, "attention", "model classes"], rows)
            say("")
    print_table(["cannot be patched", "because"], sorted(OUT_OF_SCOPE.items()))
    say("")
    say("genkit families NAME tells a family's grid, pipelines, branches and methods")


def _show_tasks(name: str | None, json: bool) -> None:
    """The table of tasks and families; of one family with the pipelines."""
    from genkit.families import families
    from genkit.pipelines.routes import TASKS, missing, table

    quiet_libraries()
    made, absent = table(), missing()
    if name is not None:
        known = _named(name, list(families())).name
        made = {known: made.get(known, {})}
    if json:
        print_json({"tasks": TASKS, "families": made, "missing": absent})
    elif name is not None:
        rows = [(task, TASKS[task], ", ".join(found)) for task, found in made[known].items()]
        print_table(["task", "is", "pipelines"], rows)
    else:
        ordered = sorted(made.items(), key=lambda each: each[0].lower())
        print_table(["family", "tasks"], [(family, ", ".join(found)) for family, found in ordered])
        say("")
        say("\n".join(f"{task}: {words}" for task, words in TASKS.items()))
        if absent:
            say(f"not told, since Diffusers or a package of theirs lacks them here: {', '.join(absent)}")
        say("genkit families --tasks NAME tells the pipelines; genkit models MODEL what one folder takes")


def _named(name: str, found: list[FamilyInfo]) -> FamilyInfo:
    """The family with this name, model class or pipeline; what is out of scope is told with its reason."""
    from genkit.errors import UsageError, explain
    from genkit.families.out_of_scope import OUT_OF_SCOPE

    names: dict[str, FamilyInfo] = {}
    for family in found:
        names |= dict.fromkeys((family.name, *family.classes, *family.pipelines), family)
    if name in OUT_OF_SCOPE:
        raise UsageError(f"{name} cannot be patched: {OUT_OF_SCOPE[name]}")
    matching = next((family for known, family in names.items() if known.lower() == name.lower()), None)
    if matching is None:
        close = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1)
        meant = next((f"did you mean {known!r}?" for known in names if [known.lower()] == close), None)
        allowed = "the name of a family, of a model class or of a pipeline"
        raise UsageError(explain("family", name, allowed, meant or "genkit families lists them"))
    return matching


def _print_whole(entry: dict[str, Any]) -> None:
    say(entry["name"])
    for key in ("classes", "pipelines", "roles", "methods", "branches"):
        say(f"  {key}: {', '.join(entry[key]) or ('not announced' if key == 'branches' else 'none')}")
    for key in ("grid", "text", "notes"):
        if entry[key]:
            say(f"  {key}: {entry[key]}")
    for role, reason in entry["unserved"].items():
        say(f"  no {role} attention: {reason}")


def _methods_by_family() -> dict[str, list[str]]:
    """Family -> the methods that, in one of their forms, serve at least one kind of its attention."""
    from genkit.patching.matrix import matrix

    served: dict[str, dict[str, None]] = {}
    for cell in matrix():
        if cell.fits:
            served.setdefault(cell.family, {})[cell.row.method] = None
    return {family: list(methods) for family, methods in served.items()}
