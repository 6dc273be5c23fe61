"""Checking a request against a model before any weights are read, and filling in what the user left open."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from genkit.errors import UnsupportedError, UsageError
from genkit.models import Sidecar, check_folder, locate, read_sidecar
from genkit.models.check import read_index, read_part_config
from genkit.pipelines import attention, guidance
from genkit.pipelines.kinds import IMAGE, Kind, ReadConfig, SizeRule, accepted, kind_of, native_fps, size_rule
from genkit.pipelines.load import fetch, parse_lora, resolve_device, resolve_dtype
from genkit.pipelines.outputs import check_format
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.audio_video.given import USUAL_FRAMES, Given, read_given
from genkit.pipelines.tasks.high_resolution import sizes as upscale
from genkit.pipelines.tasks.references import pictures as references
from genkit.pipelines.tasks.references.pictures import ReferencePicture
from genkit.pipelines.text import STRENGTH


@dataclass(frozen=True)
class Plan:
    """A request that passed every check that needs no weights.

    Args:
        settings: the settings with open values filled in for this model.
        folder: the model's folder.
        pipeline_class: its Diffusers class.
        kind: what it makes.
        sidecar: its ``genkit.json``.
        notes: what the user should know about the request, one line each.
        given: the sound or video that the run is for, fitted to it; None without one.
        references: pictures that it follows, fitted to the model.
    """

    settings: GenerateSettings
    folder: Path
    pipeline_class: type
    kind: Kind
    sidecar: Sidecar
    notes: tuple[str, ...] = ()
    given: Given | None = None
    references: tuple[ReferencePicture, ...] = ()


def plan(settings: GenerateSettings) -> Plan:
    """Check settings against the model as far as possible without reading weights, and fill in what was left open.

    A hub id is downloaded here if the cache does not hold it.

    Raises:
        GenkitError: whatever is wrong, in one line; see :class:`GenerateSettings`, :func:`genkit.load`.
    """
    if settings.prompt is None:
        raise UsageError('no prompt: give one, or "" for an unconditional run')
    if "weights" not in settings.attention_args:  # which may lie in the model's folder
        attention.build(settings)
    loras = [parse_lora(text) for text in settings.lora]
    location = locate(settings.model)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if settings.offload != "none" and device.type == "cpu":
        raise UnsupportedError(f"--offload {settings.offload} needs a GPU, and the device is the CPU; leave it out")
    folder = fetch(location)
    settings = attention.with_weights(settings, folder)
    pipeline_class = _class_of(folder)
    sidecar = read_sidecar(folder)
    kind = kind_of(pipeline_class)
    attention.check_model(settings, pipeline_class.__name__, folder)
    config = configs_of(folder)
    given = read_given(settings, pipeline_class, kind)
    filled = _fill(settings, sidecar, pipeline_class, kind, config)
    if given is not None and settings.num_frames is None:
        filled = _as_long_as(given, filled, sidecar, pipeline_class, folder)
    filled, notes = guidance.settle(filled, settings, sidecar, pipeline_class, config)
    filled = upscale.fill(filled, pipeline_class.__name__, config, sidecar.defaults)
    filled = filled.replace(
        model=str(folder.resolve()) if location.kind == "folder" else settings.model,
        lora=tuple(f"{path.resolve()}{STRENGTH}{strength:g}" for path, strength in loras),
        recipe=attention.recipe_place(settings.recipe),
        reference=references.full_places(settings.reference),
        audio=str(Path(settings.audio).expanduser().resolve()) if settings.audio else None,
        video=str(Path(settings.video).expanduser().resolve()) if settings.video else None,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        seed=settings.seed if settings.seed is not None else secrets.randbelow(2**32),
    )
    _check_sizes(filled, sidecar, pipeline_class, folder)
    attention.check_steps(filled)
    if settings.output is not None:
        check_format(settings.output, kind, filled.num_frames)
    if given is not None:
        given = given.fitted(filled.num_frames, Fraction(filled.fps), filled.height, filled.width)
        notes = (*notes, *given.told)
    rule = _rule(sidecar, pipeline_class, folder)
    followed = references.read_references(filled, pipeline_class.__name__, 8 if rule is None else rule.multiple)
    notes = (*notes, *(line for reference in followed for line in reference.told))
    return Plan(filled, folder, pipeline_class, kind, sidecar, notes, given, followed)


def _class_of(folder: Path) -> type:
    import diffusers

    name = check_folder(folder)["_class_name"]
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if found is None:
        raise UnsupportedError(
            f"{folder} needs the pipeline class {name}, which diffusers {diffusers.__version__} does not have"
        )
    return found


def _fill(
    settings: GenerateSettings, sidecar: Sidecar, pipeline_class: type, kind: Kind, config: ReadConfig
) -> GenerateSettings:
    """Open values from genkit.json, then from the pipeline's own defaults; what the pipeline does not know is
    refused."""
    known = accepted(pipeline_class)
    changes = {}
    for name, targets in guidance.argument_names(pipeline_class, config).items():
        target = next((target for target in targets if target in known), None)
        given = getattr(settings, name)
        if target is None and name != "fps":
            if given is not None:
                raise UsageError(f"--{name.replace('_', '-')}: {pipeline_class.__name__} takes no {name}; leave it out")
            continue
        if given is None:
            own = sidecar.call.get(target, known[target].default) if target is not None else None
            value = sidecar.defaults.get(name, own)
            changes[name] = str(value) if name == "fps" and value is not None else value
    if kind is IMAGE:
        if settings.fps is not None:
            raise UsageError(f"--fps: {pipeline_class.__name__} makes images; leave it out")
        changes.pop("fps", None)
    elif settings.fps is None and changes.get("fps") is None:
        changes["fps"] = native_fps(pipeline_class.__name__)
    return settings.replace(**changes)


def _as_long_as(
    given: Given, settings: GenerateSettings, sidecar: Sidecar, pipeline_class: type, folder: Path
) -> GenerateSettings:
    """As many frames as what is given lasts, but no more than the model's limit or, without one, its usual number."""
    rule = _rule(sidecar, pipeline_class, folder)
    most = sidecar.limits.get("max_frames") or settings.num_frames or USUAL_FRAMES
    return settings.replace(num_frames=given.num_frames(Fraction(settings.fps), rule, most))


def _rule(sidecar: Sidecar, pipeline_class: type, folder: Path) -> SizeRule | None:
    """The rule of sizes of the pipeline class, sharpened by the model's ``genkit.json``; None when there is none."""
    rule = size_rule(pipeline_class.__name__, configs_of(folder))
    if rule is None:
        return None
    return dataclasses.replace(
        rule,
        multiple=sidecar.limits.get("multiple", rule.multiple),
        frames_multiple=sidecar.limits.get("frames_multiple", rule.frames_multiple),
    )


def configs_of(folder: Path) -> ReadConfig:
    """A reader of a model folder's parts' configurations and ``model_index``; an absent part reads as empty."""

    def config(part: str) -> dict:
        return read_index(folder) if part == "model_index" else read_part_config(folder, part)

    return config


def _check_sizes(settings: GenerateSettings, sidecar: Sidecar, pipeline_class: type, folder: Path) -> None:
    rule = _rule(sidecar, pipeline_class, folder)
    limits, height, width = sidecar.limits, settings.height, settings.width
    if rule is not None:
        rule.check(settings.height, settings.width, settings.num_frames)
        height, width = upscale.check(settings, rule)
    for name, value, low, high in (
        ("height", height, "min_height", "max_height"),
        ("width", width, "min_width", "max_width"),
        ("num_frames", settings.num_frames, None, "max_frames"),
    ):
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if low in limits and value < limits[low]:
            raise UsageError(f"{flag}: got {value}, {settings.model} starts at {limits[low]}")
        if high in limits and value > limits[high]:
            raise UsageError(f"{flag}: got {value}, {settings.model} goes up to {limits[high]}")
