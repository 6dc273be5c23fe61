"""Recipes: attention methods with their schedules for a model, and where every value comes from, in a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from genkit.errors import ArtifactError, UsageError, explain
from genkit.pipelines.recipe_match import Match, denoisers_of
from genkit.pipelines.request import read_config
from genkit.reading import user_path
from genkit.schema import Rule, read

FOLDER = Path(__file__).parents[1] / "recipes"
SUFFIX = ".yaml"
KEYS = ("description", "match", "models", "made_for", "settings", "parts", "provenance", "measured")
PART_KEYS = ("attention", "attention_args", "schedule", "roles")
SCHEDULE_KEYS = ("layers", "steps", "branches", "heads")
#: Settings of a run that a recipe may bring along; what the user gives wins.
SETTINGS_RULES = {
    "flow_shift": Annotated[float, Rule(low=0.01, high=100)],
    "guidance_scale": Annotated[float, Rule(low=0, high=10_000)],
    "steps": Annotated[int, Rule(low=1, high=1_000_000)],
}
MADE_FOR_KEYS = ("models", "height", "width", "num_frames", "steps", "training")
ORIGINS = {
    "paper": "the method's paper",
    "code": "the authors' code",
    "other": "another implementation",
    "ours": "our choice",
}


@dataclass(frozen=True)
class Value:
    """One setting of a recipe and where it comes from.

    Args:
        name: ``"radial.decay_factor"``, ``"radial.steps"``; a second part with the same method is ``"radial#2..."``.
        value: as the file gives it.
        origin: a key of :data:`ORIGINS`, or None when the file does not say.
        note: where exactly, or why.
    """

    name: str
    value: Any
    origin: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """What to patch into a model; :func:`genkit.patch` takes it in place of a method.

    Args:
        name: shipped name or path.
        parts: the methods with their schedules and roles (:class:`genkit.patching.Part`).
        match: class and configuration of the models it suits; None = any.
        models: patterns (``*`` matches anything) of model names or pipeline classes it suits; empty = any.
        description: one line.
        values: every setting with its origin.
        made_for: size, steps and models the values were chosen for, and ``training: lora`` when weights must be
            fine-tuned with the same mask first.
        measured: how and where it was measured, as the file says.
        settings: settings of a run that it brings along, see :data:`SETTINGS_RULES`.
    """

    name: str
    parts: tuple[Any, ...]
    match: Match | None = None
    models: tuple[str, ...] = ()
    description: str = ""
    values: tuple[Value, ...] = ()
    made_for: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    def why_not(self, denoisers: Sequence[tuple[str, Mapping[str, Any]]], *names: str) -> str | None:
        """Why the recipe does not suit a model, or None when it does.

        Args:
            denoisers: class name and configuration of each denoiser of the model.
            names: what the model is called (its own name, its pipeline class), for ``models``.
        """
        if self.models and names and not any(fnmatchcase(name, each) for name in names for each in self.models):
            return explain("model", names[0], self.models)
        return None if self.match is None else self.match.why_not(denoisers)

    def check(self, denoisers: Sequence[tuple[str, Mapping[str, Any]]], *names: str) -> None:
        """Raise UsageError with the reason of :meth:`why_not`."""
        reason = self.why_not(denoisers, *names)
        if reason is not None:
            raise UsageError(f"recipe {self.name} does not suit this model: {reason}")

    def check_target(self, target: Any) -> None:
        """As :meth:`check`, for a loaded pipeline or bare denoiser; :func:`genkit.patch` calls this."""
        self.check(denoisers_of(target), *([type(target).__name__] if hasattr(target, "components") else []))

    def with_schedule(self, schedule: Any) -> Recipe:
        """The same methods under another schedule (:class:`genkit.Schedule`), in place of the recipe's own."""
        parts = tuple(dataclasses.replace(part, schedule=schedule) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def remark(self, steps: int | None) -> str | None:
        """What to know about a run whose number of steps is not the one the schedule was made for."""
        made = self.made_for.get("steps")
        named = [part.schedule.steps for part in self.parts if part.schedule is not None]
        if made is None or steps in (None, made) or not any(named):
            return None
        return f"recipe {self.name} counts its steps for a run of {made}, this run has {steps}; --schedule changes them"


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))


def recipe_place(name: str | None) -> str | None:
    """A recipe's name in a form that means the same from any folder: shipped names as they are, files by their full
    path."""
    return name if name is None or name in recipe_names() else str(Path(name).expanduser().resolve())


def recipe(name: str | Path) -> Recipe:
    """A shipped recipe by name, or a YAML file of one's own.

    The file holds ``parts``, a list of ``{attention: NAME, attention_args: {...}, schedule: {...}, roles: [...]}``,
    and may hold ``description``, ``match``, ``models``, ``made_for``, ``settings``, ``provenance`` and ``measured``.

    Raises:
        UsageError: unknown name, key, method or setting, or a value of the wrong type.
        ArtifactError: missing or unreadable file.

    Example:
        >>> genkit.patch(pipe, genkit.recipe("wan2.1-14b-radial"))  # doctest: +SKIP
    """
    text = str(name)
    path = user_path(text, "recipe")
    if text in recipe_names():
        path = FOLDER / f"{text}{SUFFIX}"
    elif path.suffix not in (SUFFIX, ".yml", ".json"):
        raise UsageError(explain("recipe", text, [*recipe_names(), "a .yaml file"]))
    elif not path.is_file():
        raise ArtifactError(f"recipe file {path} does not exist")
    return parse(text, read_config(path))


def parse(name: str, values: Any) -> Recipe:
    """A recipe from the content of its file; see :func:`recipe`."""
    what = f"recipe {name}"
    _only(what, values, KEYS)
    parts = values.get("parts")
    if not isinstance(parts, list) or not parts:
        raise UsageError(f"{what} needs parts: a list of {{attention: NAME, ...}}")
    made_for = _mapping(what, values, "made_for")
    _check_made_for(what, made_for)
    built = tuple(_part(f"{what}, part {index + 1}", part) for index, part in enumerate(parts))
    return Recipe(
        name,
        built,
        Match.of(what, values["match"]) if "match" in values else None,
        _texts(what, "models", values.get("models", [])),
        _text(what, "description", values.get("description", "")),
        _values(what, parts, _mapping(what, values, "provenance")),
        made_for,
        _mapping(what, values, "measured"),
        _settings(what, _mapping(what, values, "settings")),
    )


def _settings(what: str, values: dict) -> dict[str, Any]:
    _only(f"{what}, settings", values, tuple(SETTINGS_RULES))
    return {name: read(SETTINGS_RULES[name], value, f"{what}, settings.{name}") for name, value in values.items()}


def _part(what: str, values: Any) -> Any:
    from genkit.attention import registry
    from genkit.patching import Part, Schedule

    if not isinstance(values, dict) or not isinstance(values.get("attention"), str):
        raise UsageError(f"{what} must be a mapping with attention: NAME")
    _only(what, values, PART_KEYS)
    schedule = _mapping(what, values, "schedule", "such as {steps: '10:-2', layers: '1:'}")
    _only(f"{what}, schedule", schedule, SCHEDULE_KEYS)
    try:
        return Part(
            registry.build(values["attention"], _mapping(what, values, "attention_args")),
            Schedule(**schedule) if schedule else None,
            _texts(what, "roles", values["roles"]) if "roles" in values else None,
        )
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


def value_names(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parts of a recipe set, by the names that origins are given under: ``radial.block_size``; of a second
    part of a method ``radial#2.block_size``."""
    settings: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for part in parts:
        method = part["attention"]
        seen[method] = seen.get(method, 0) + 1
        prefix = method if seen[method] == 1 else f"{method}#{seen[method]}"
        for group in ("attention_args", "schedule"):
            settings |= {f"{prefix}.{key}": value for key, value in (part.get(group) or {}).items()}
        if "roles" in part:
            settings[f"{prefix}.roles"] = part["roles"]
    return settings


def _values(what: str, parts: list[dict], provenance: dict) -> tuple[Value, ...]:
    """Every setting of the parts with its origin; UsageError for an origin of something that is not set."""
    settings = value_names(parts)
    for name, text in provenance.items():
        if name not in settings:
            raise UsageError(explain(f"{what}, provenance", name, list(settings)))
        if not isinstance(text, str) or text.partition(":")[0].strip() not in ORIGINS:
            forms = "'paper: where', 'code: where', 'other: where' or 'ours: why'"
            raise UsageError(explain(f"{what}, provenance of {name}", text, forms))
    found = []
    for name, value in settings.items():
        origin, _, note = provenance.get(name, "").partition(":")
        found.append(Value(name, value, origin.strip() or None, note.strip()))
    return tuple(found)


def _check_made_for(what: str, made_for: dict) -> None:
    _only(f"{what}, made_for", made_for, MADE_FOR_KEYS)
    for key, value in made_for.items():
        if key == "models":
            _texts(what, "made_for.models", value)
        elif key == "training":
            if value not in ("none", "lora"):
                raise UsageError(explain(f"{what}, made_for.training", value, ("none", "lora")))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(explain(f"{what}, made_for.{key}", value, "a whole number >= 1"))


def _mapping(what: str, values: dict, key: str, example: str = "of names and values") -> dict:
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(explain(f"{what}, {key}", value, f"a mapping {example}"))
    return value


def _text(what: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(explain(f"{what}, {key}", value, "a text"))
    return value


def _texts(what: str, key: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise UsageError(explain(f"{what}, {key}", value, "a text or a list of texts"))
    return tuple(values)


def _only(what: str, values: dict, allowed: tuple[str, ...]) -> None:
    for key in values:
        if key not in allowed:
            raise UsageError(explain(what, key, allowed))
