"""Writing recipes whose values were measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from genkit.attention.method import Method
from genkit.errors import UsageError
from genkit.media.atomic import Files
from genkit.pipelines.recipes import recipe, value_names

#: Configuration values that tell models of a class from each other.
NAMES = ("num_layers", "num_attention_heads", "in_channels")


def write_parts(
    path: Path, parts: Sequence[tuple[Method, Mapping[str, str]]], model_class: str, config: Mapping[str, Any],
    about: str, measured: Mapping[str, Any], made_for: Mapping[str, Any] | None = None, origin: str | None = None,
) -> Path:  # fmt: skip
    """Write a recipe of methods with their schedules, and read it back.

    Args:
        path: ends in ``.yaml``; appears whole or not at all.
        parts: methods with schedules as texts.
        model_class, config: of the denoiser; class, layers, heads and channels are what the recipe is for.
        about: one line of what was chosen and how. measured: numbers that go with it.
        made_for: models, size and steps the values were chosen for.
        origin: why every value is as it is, our choice.

    Raises:
        UsageError: nothing is left sparse.
    """
    if not parts:
        raise UsageError("a recipe needs something sparse: all heads or layers keep full attention; choose fewer")
    found = {name: config[name] for name in NAMES if name in config}
    values: dict[str, Any] = {"description": about, "match": {"model": model_class}}
    if found:
        values["match"]["config"] = found
    if made_for:
        values["made_for"] = dict(made_for)
    values["parts"] = [_part(method, schedule) for method, schedule in parts]
    if origin:
        values["provenance"] = {name: f"ours: {origin}" for name in value_names(values["parts"])}
    values["measured"] = dict(measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Files() as files:
        files.new(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    recipe(path)
    return path


def _part(method: Method, schedule: Mapping[str, str]) -> dict[str, Any]:
    defaults = type(method)().settings()
    args = {name: _plain(value) for name, value in method.settings().items() if value != defaults[name]}
    return {"attention": method.name, **({"attention_args": args} if args else {}), "schedule": dict(schedule)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
