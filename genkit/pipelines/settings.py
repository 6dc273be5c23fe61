"""One schema for the command line's flags, configuration files and the settings stored in every output."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UsageError, explain
from genkit.models.registry import DEFAULT_MODEL
from genkit.pipelines.text import join_pairs, parse_pairs
from genkit.reading import rate, read_yaml
from genkit.reading.files import place

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
DTYPE_CHOICES = ("auto", "float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential")
NONE = "none"
SEED_LIMIT = 2**63


def option(default: Any, help: str, *, group: str = "Generation", **more: Any) -> Any:
    """A settings field with the text that ``--help``, documentation and error messages show."""
    metadata = {"help": help, "group": group, **more}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class GenerateSettings:
    """Everything that decides what ``genkit generate`` makes. A None means "what suits the model" (its ``genkit.json``,
    else the pipeline's own default) and is replaced by the value used before settings are stored.
    """

    prompt: str | None = option(None, "What to show. An empty text is allowed: the model then runs unconditionally.")
    negative_prompt: str | None = option(None, "What to avoid; needs a guidance scale above 1.")
    model: str = option(DEFAULT_MODEL, "Shipped name, local Diffusers folder, or hub id owner/name[@revision].")
    steps: int | None = option(None, "Denoising steps.", low=1)
    guidance_scale: float | None = option(None, "How strongly the prompt rules; 1 switches guidance off.", low=0)
    height: int | None = option(None, "Height in pixels.", low=1)
    width: int | None = option(None, "Width in pixels.", low=1)
    num_frames: int | None = option(None, "Frames of a video.", low=1)
    fps: str | None = option(None, "Frames per second of the file, kept exactly: 8, 23.976, 30000/1001.", number=True)
    seed: int | None = option(None, "Start of the random numbers; drawn and printed when not given.", low=0)
    num_videos: int = option(1, "Outputs per prompt, with seeds seed, seed+1, ...", low=1)
    max_sequence_length: int | None = option(None, "Text tokens the model reads.", low=1)
    truncate_prompt: bool = option(False, "Cut a prompt that is too long instead of refusing it.", one_way=True)
    attention: str | None = option(
        None, "Attention method by name (see genkit methods); 'none' for the model's own.", group="Attention"
    )
    attention_args: dict = option(dict, "Settings of the method: key=value,key=value.", group="Attention")
    schedule: str | None = option(
        None, "Where it applies: steps=10:-2,layers=1: (also branches=, heads=), or recommended.", group="Attention"
    )
    backend: str = option("auto", "Who executes the method: auto, or a name from genkit doctor.", group="Attention")
    reference: tuple[str, ...] = option(
        (), "Picture to follow, with @0.8 for its strength; goes with --attention reference. Repeatable.",
        group="Attention",
    )  # fmt: skip
    reference_box: str | None = option(
        None, "Where the references apply, as shares of the canvas: left,top,right,bottom.", group="Attention"
    )
    recipe: str | None = option(None, "Recipe by name or YAML file, instead of --attention.", group="Attention")
    audio: str | None = option(
        None, "Sound file that a video is made for (models of video and sound).", group="Audio and video"
    )
    video: str | None = option(
        None, "Video file that a sound is made for (models of video and sound).", group="Audio and video"
    )
    lora: tuple[str, ...] = option((), "LoRA file or folder, with @0.8 for its strength. Repeatable.", group="Model")
    dtype: str = option(
        "auto", "auto, float32, bfloat16 or float16 (fp32, bf16, fp16).", group="Model", choices=DTYPE_CHOICES
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps, ...", group="Model")
    offload: str = option(
        "none", "none, model or sequential: keep parts in main memory until needed.", group="Model", choices=OFFLOADS
    )
    vae_tiling: bool = option(False, "Decode in tiles: less memory, slower, faint seams possible.", group="Model")
    vae_slicing: bool = option(False, "Decode one video of a batch at a time.", group="Model")
    upscale: float = option(
        1.0, "Denoise a second time at 2, 1.5, ... times the size; goes with --attention sliding_window (Wan models).",
        group="High resolution", low=1, high=8,
    )  # fmt: skip
    upscale_strength: float | None = option(
        None, "Share of the steps of the second pass, 0.7 when left out.", group="High resolution", low=0, high=1
    )
    upscale_shift: float | None = option(
        None, "Timestep shift of the second pass, 9 when left out; larger starts from more noise.",
        group="High resolution", low=0.01, high=100,
    )  # fmt: skip
    enlarge: int = option(
        1, "Enlarge the written frames 2, 3, ... times (Lanczos): small clips keep their edges in .mp4.",
        group="Output", low=1, high=8,
    )  # fmt: skip
    output: str | None = option(
        None, "File (.mp4 .gif .webp .png), pattern (shot-%04d.png) or folder of frames.", group="Output", stored=False
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", DTYPES.get(self.dtype, self.dtype))
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.audio is not None and self.video is not None:
            raise UsageError("--audio and --video exclude each other: one is given, the other made; leave one out")
        if self.attention is not None and self.recipe is not None:
            raise UsageError("--attention and --recipe exclude each other: a recipe names its methods itself")
        if self.attention is None and self.attention_args:
            raise UsageError("--attention-args needs --attention NAME; see genkit methods")
        if self.reference and self.attention != "reference":
            raise UsageError("--reference needs --attention reference")
        if self.reference_box is not None and not self.reference:
            raise UsageError("--reference-box needs --reference FILE")
        if self.attention is None and self.recipe is None:
            for flag, given in (("--schedule", self.schedule is not None), ("--backend", self.backend != "auto")):
                if given:
                    raise UsageError(f"{flag} needs --attention NAME or --recipe FILE")

        if self.upscale == 1:
            for flag, given in (("strength", self.upscale_strength), ("shift", self.upscale_shift)):
                if given is not None:
                    raise UsageError(f"--upscale-{flag} needs --upscale above 1")

    @classmethod
    def field_names(cls) -> list[str]:
        """The settings by name, in order."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_mappings(cls, *sources: tuple[str, Mapping[str, Any]]) -> GenerateSettings:
        """Merge several (origin, values) pairs, the later ones winning; a None counts as not given.

        Naming ``attention`` replaces an earlier recipe and the earlier method's arguments (and the other way round);
        ``attention: none`` removes them together with the schedule.

        Raises:
            UsageError: an unknown name or a value of the wrong type; the message names the origin.
        """
        merged: dict[str, Any] = {}
        for origin, values in sources:
            given = {key: value for key, value in _checked(cls, origin, values).items() if value is not None}
            if "attention" in given or "recipe" in given:
                dropped = ["attention", "attention_args", "recipe", "reference", "reference_box"]
                dropped += ["schedule", "backend"] if given.get("attention") == NONE else []
                if given.get("attention") != merged.get("attention") or "recipe" in given:
                    merged = {key: value for key, value in merged.items() if key not in dropped}
            if given.get("attention") == NONE:
                given = {key: value for key, value in given.items() if key not in ("attention", "attention_args")}
            merged.update(given)
        return cls(**merged)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values, without those that do not change the picture (``output``)."""
        values = {}
        for field in dataclasses.fields(self):
            if field.metadata.get("stored", True):
                value = getattr(self, field.name)
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    def replace(self, **changes: Any) -> GenerateSettings:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def _check(field: dataclasses.Field, value: Any) -> None:
    """Ranges and choices of one field; types were settled before or come from Python callers."""
    if value is None:
        return
    flag = f"--{field.name.replace('_', '-')}"
    kinds = _kinds(typing.get_type_hints(GenerateSettings)[field.name])
    wrong = isinstance(value, bool) and bool not in kinds
    if wrong or not isinstance(value, (*kinds, int) if float in kinds else kinds):
        raise UsageError(explain(flag, value, " or ".join(kind.__name__ for kind in kinds)))
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(explain(flag, value, "a finite number"))
    low = field.metadata.get("low")
    if low is not None and value < low:
        raise UsageError(explain(flag, value, f"a number >= {low}" if low else "0 or more"))
    high = field.metadata.get("high")
    if high is not None and value > high:
        raise UsageError(explain(flag, value, f"{low} to {high}"))
    if field.name == "seed" and value >= SEED_LIMIT:
        raise UsageError(explain(flag, value, "0 to 2^63 - 1"))
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise UsageError(explain(flag, value, choices))
    if field.metadata.get("number"):
        rate(value, flag)


def _kinds(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return tuple(kind for part in parts for kind in _kinds(part))
    return (typing.get_origin(hint) or hint,)


def _checked(cls: type, origin: str, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    result = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise UsageError(explain(f"setting in {origin}", key, list(fields)))
        result[name] = (
            None if value is None else _convert(f"{key} in {origin}", _kinds(hints[name])[0], fields[name], value)
        )
    return result


def _convert(what: str, kind: type, field: dataclasses.Field, value: Any) -> Any:
    """A value from a flag or a file as the field's type. Nothing is guessed: "1.5" is no whole number, "yes" no
    switch."""
    if kind is dict:
        if isinstance(value, Mapping):
            return {str(key): part for key, part in value.items()}
        if isinstance(value, str):
            return parse_pairs(value, what)
    if kind is tuple:
        parts = [value] if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
    if kind is str:
        if isinstance(value, Mapping) and field.name == "schedule":
            return join_pairs(dict(value))
        if isinstance(value, str):
            return value
        if field.metadata.get("number") and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind is float or value == int(value):
            return kind(value)
    raise UsageError(
        explain(what, value, {"dict": "key=value pairs", "tuple": "a list of texts"}.get(kind.__name__, kind.__name__))
    )


def read_config(path: str | Path) -> dict[str, Any]:
    """Read settings from a YAML or JSON file.

    Raises:
        ArtifactError: missing or unparsable file.
        UsageError: the file holds something other than names and values.
    """
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{place(path)} must hold names and values, such as 'steps: 20'; got {type(values).__name__}")
    return values
