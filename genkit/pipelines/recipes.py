"""Recipes: attention methods with their schedules for a model, and how they were measured, in a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UsageError, explain
from genkit.pipelines.settings import read_config

FOLDER = Path(__file__).parents[1] / "recipes"
SUFFIX = ".yaml"
KEYS = ("description", "models", "parts", "measured")
PART_KEYS = ("attention", "attention_args", "schedule", "roles")


@dataclass(frozen=True)
class Recipe:
    """What to patch into a model; :func:`genkit.patch` takes it in place of a method.

    Args:
        name: shipped name or path.
        parts: the methods with their schedules and roles (:class:`genkit.patching.Part`).
        models: patterns (``*`` matches anything) of the model names or pipeline classes it was made for; empty = any.
        description: one line.
        measured: how and where it was measured, as the file says.
    """

    name: str
    parts: tuple[Any, ...]
    models: tuple[str, ...] = ()
    description: str = ""
    measured: dict = field(default_factory=dict)

    def check_model(self, *names: str) -> None:
        """Raise UsageError when none of a model's names (its own, its pipeline class) fits the recipe's patterns."""
        if self.models and not any(fnmatchcase(name, pattern) for name in names for pattern in self.models):
            raise UsageError(explain(f"recipe {self.name}: model", names[0], self.models))


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))


def recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name, or a YAML file of one's own.

    The file holds ``parts``, a list of ``{attention: NAME, attention_args: {...}, schedule: {...}, roles: [...]}``,
    and may hold ``description``, ``models`` and ``measured``.

    Raises:
        UsageError: unknown name, key, method or setting.
        ArtifactError: missing or unreadable file.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text in recipe_names():
        path = FOLDER / f"{text}{SUFFIX}"
    elif path.suffix not in (SUFFIX, ".yml", ".json"):
        raise UsageError(explain("recipe", text, [*recipe_names(), "a .yaml file"]))
    elif not path.is_file():
        raise ArtifactError(f"recipe file {path} does not exist")
    values = read_config(path)
    _only(f"recipe {text}", values, KEYS)
    parts = values.get("parts")
    if not isinstance(parts, list) or not parts:
        raise UsageError(f"recipe {text} needs parts: a list of {{attention: NAME, ...}}")
    models = values.get("models") or []
    return Recipe(
        text,
        tuple(_part(f"recipe {text}, part {index + 1}", part) for index, part in enumerate(parts)),
        (models,) if isinstance(models, str) else tuple(str(model) for model in models),
        str(values.get("description", "")),
        values.get("measured") or {},
    )


def _part(what: str, values: Any) -> Any:
    from genkit.attention import registry
    from genkit.patching import Part, Schedule

    if not isinstance(values, dict) or "attention" not in values:
        raise UsageError(f"{what} must be a mapping with attention: NAME")
    _only(what, values, PART_KEYS)
    schedule = values.get("schedule")
    if schedule is not None:
        if not isinstance(schedule, dict):
            raise UsageError(f"{what}: schedule must be a mapping such as {{steps: '10:-2', layers: '1:'}}")
        _only(f"{what}, schedule", schedule, ("layers", "steps", "branches", "heads"))
    roles = values.get("roles")
    return Part(
        registry.build(str(values["attention"]), values.get("attention_args") or {}),
        Schedule(**(schedule or {})),
        tuple([roles] if isinstance(roles, str) else roles) if roles else None,
    )


def _only(what: str, values: dict, allowed: tuple[str, ...]) -> None:
    for key in values:
        if key not in allowed:
            raise UsageError(explain(what, key, allowed))
