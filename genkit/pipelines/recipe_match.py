"""Which models a recipe was made for: class and configuration of their denoisers, of a folder or a loaded pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.models.check import parts_of, read_index, read_part_config

MATCH_KEYS = ("model", "config", "denoisers")


@dataclass(frozen=True)
class Match:
    """What a model must be for a recipe to suit it.

    Args:
        model: Diffusers classes of the denoiser, one of which it must have.
        config: configuration values every denoiser must have, for instance ``{"num_layers": 40}``.
        denoisers: how many denoisers the pipeline must have (Wan 2.2 has two); None = any number.
    """

    model: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    denoisers: int | None = None

    @classmethod
    def of(cls, what: str, values: Any) -> Match:
        """A match from a recipe file's ``match:`` mapping; UsageError names what is wrong."""
        if not isinstance(values, dict) or "model" not in values:
            raise UsageError(f"{what}: match must be a mapping with model: CLASS, got {values!r}")
        for key in values:
            if key not in MATCH_KEYS:
                raise UsageError(explain(f"{what}, match", key, MATCH_KEYS))
        classes = [values["model"]] if isinstance(values["model"], str) else values["model"]
        known = _known_classes()
        for name in classes if isinstance(classes, list) and classes else [values["model"]]:
            if name not in known:
                raise UsageError(explain(f"{what}, match.model", name, sorted(known)))
        config, count = values.get("config", {}), values.get("denoisers")
        if not isinstance(config, dict):
            raise UsageError(explain(f"{what}, match.config", config, "names and values of the model's configuration"))
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise UsageError(explain(f"{what}, match.denoisers", count, "a whole number >= 1"))
        return cls(tuple(classes), {str(name): value for name, value in config.items()}, count)

    def why_not(self, found: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
        """Why denoisers, given as (class name, configuration), do not match; None when they do."""
        wanted = " or ".join(self.model)
        if not found:
            return f"it is for {wanted}, this model has no denoiser genkit knows"
        for name, config in found:
            if name not in self.model:
                return f"it is for {wanted}, this model is {name}"
            for key, value in self.config.items():
                given = _plain(config[key] if key in config else _default(name, key))
                if given != value:
                    return f"it is for {wanted} with {key} = {value}, this model has {key} = {given}"
        if self.denoisers is not None and len(found) != self.denoisers:
            kind = "a denoiser" if self.denoisers == 1 else f"{self.denoisers} denoisers"
            return f"it is for pipelines with {kind}, this one has {len(found)}; patch the whole pipeline"
        return None

    def __str__(self) -> str:
        parts = [" or ".join(self.model), *(f"{name}={value}" for name, value in self.config.items())]
        return ", ".join(parts + ([] if self.denoisers is None else [f"denoisers={self.denoisers}"]))


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _default(class_name: str, key: str) -> Any:
    """What a class takes for a configuration value that a file leaves out; files may be older than the value."""
    import diffusers

    parameter = inspect.signature(getattr(diffusers, class_name).__init__).parameters.get(key)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _known_classes() -> set[str]:
    from genkit.families.lookup import records

    return {name for family in records() for name in family.classes}


def denoisers_of_folder(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Class and configuration of the denoisers in a model folder; reads no weights."""
    known = _known_classes()
    parts = parts_of(read_index(folder))
    return [(name, read_part_config(folder, part)) for part, name in parts.items() if name in known]


def denoisers_of(target: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Class and configuration of the denoisers of a pipeline, or of a bare model."""
    from genkit.families.lookup import diffusers_class
    from genkit.patching.targets import find_denoisers

    models = [denoiser.model() for denoiser in find_denoisers(target)]
    return [(diffusers_class(model) or type(model).__name__, model.config) for model in models]
