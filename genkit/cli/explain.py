"""``genkit families --explain``: what the attention of a model is like, and a draft of its record."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from genkit.cli.output import print_json, print_table, say
from genkit.errors import counted

if TYPE_CHECKING:
    from genkit.pipelines.explain import Explanation


def explain_folder(folder: str, name: str | None, model_class: str | None, inputs: list[str], json: bool) -> None:
    """Print what is found of every denoiser of a folder."""
    from genkit.errors import UnsupportedError, UsageError
    from genkit.pipelines.explain import draft, explain_model, models_in
    from genkit.pipelines.explain.inputs import tensors

    if name is not None:
        raise UsageError(f"--explain takes a folder and no family; leave {name!r} out")
    found = []
    for part, model in models_in(folder, model_class).items():
        explanation = explain_model(model, tensors(inputs))
        attends = bool(explanation.groups or explanation.likely)
        found.append((part, explanation, draft(explanation) if attends else "", _record(model)))
    if json:
        print_json({"models": [_as_data(*each) for each in found]})
    for part, explanation, text, record in [] if json else found:
        _print(part, explanation, record)
        if text:
            say("")
            say(text)
    if not any(text for _, _, text, _ in found):
        raise UnsupportedError(f"no attention was found in {folder}, so there is no record to draft")


def _record(model: Any) -> str:
    """What genkit knows of a model's class already, in words."""
    from genkit.errors import UnsupportedError
    from genkit.families.lookup import family_of

    try:
        family = family_of(model)
    except UnsupportedError as error:
        return f"no record: {error}" if "cannot be patched" in str(error) else "no record"
    sites = family.find_sites(model)
    return (
        f"the record {family.name!r} describes it: {counted(len(sites), 'attention module')}, {', '.join(family.roles)}"
    )


def _arguments(explanation: Explanation) -> dict[str, str]:
    """The guessed arguments: shapes of tensors, other values as they are."""
    args = {} if explanation.guess is None else explanation.guess.args
    return {
        name: "x".join(map(str, value.shape)) if hasattr(value, "shape") else str(value) for name, value in args.items()
    }


def _print(part: str, explanation: Explanation, record: str) -> None:
    say(f"{part + ': ' if part else ''}{explanation.name} ({record})")
    if explanation.guess is not None:
        shapes = ", ".join(f"{name} {value}" for name, value in _arguments(explanation).items())
        say(f"  one forward without numbers ran with {shapes}")
    if explanation.grid is not None and explanation.guess is not None:
        grid, patch = ("x".join(map(str, each)) for each in (explanation.grid, explanation.patch))
        say(f"  token grid {grid}: {patch} latents behind a token ({explanation.guess.axes})")
    if explanation.text_first is not None:
        say(f"  text tokens come {'before' if explanation.text_first else 'after'} the grid's")
    if explanation.groups:
        rows = [
            (
                group.pattern, group.modules, group.role or "?", group.heads, " ".join(group.projections) or "?",
                group.why,
            )
            for group in explanation.groups
        ]  # fmt: skip
        print_table(["modules that attend", "number", "role", "heads", "projections", "tokens"], rows)
    elif explanation.likely:
        say("  modules that look like attention: " + ", ".join(explanation.likely))
    for reason in explanation.missing:
        say(f"  not found: {reason}")


def _as_data(part: str, explanation: Explanation, text: str, record: str) -> dict[str, Any]:
    return {
        "part": part,
        "class": explanation.name,
        "record": record,
        "arguments": _arguments(explanation),
        "axes": explanation.guess.axes if explanation.guess is not None else "",
        "grid": explanation.grid,
        "patch": explanation.patch,
        "text_first": explanation.text_first,
        "attention": [dataclasses.asdict(group) for group in explanation.groups],
        "likely": explanation.likely,
        "missing": explanation.missing,
        "draft": text,
    }
