"""From settings to variants that can run: everything is checked before weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError, UnsupportedError, UsageError, shown
from genkit.evaluation.comparison import perceptual
from genkit.evaluation.comparison.caches import parse_cache
from genkit.evaluation.comparison.makers import SessionMaker
from genkit.evaluation.comparison.memory import weights_of
from genkit.evaluation.comparison.settings import OWN_FIELDS, CompareSettings
from genkit.evaluation.comparison.variants import (
    Variant,
    attention_variant,
    from_mapping,
    short_names,
    with_baseline,
    written_variant,
)
from genkit.pipelines import memory
from genkit.pipelines.memory import size
from genkit.pipelines.record import FILES
from genkit.pipelines.request import COMMAND_LINE, Settings
from genkit.pipelines.resolve import Request, draw_seed, resolve
from genkit.pipelines.session import LOADED, Session
from genkit.pipelines.settings import GenerateSettings

_VARIANTS = ("attention", "recipe", "cache", "variant", "variants")
_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Planned:
    """A variant that passed every check.

    Args:
        variant: its name and settings. request: resolved. cache: configuration of a Diffusers cache, or None.
    """

    variant: Variant
    request: Request
    cache: Any = None


@dataclass(frozen=True)
class Plan:
    """A comparison that passed every check that needs no weights.

    Args:
        settings: with open values filled in; what the report stores.
        variants: the baseline first.
        prompts, seeds: every prompt runs with every seed.
        perceptual: whether what ``genkit[metrics]`` measures is computed.
        needed, free: bytes that the comparison will need at least, and that there are; None where it cannot be told.
        notes: what the user should know, one line each.
    """

    settings: CompareSettings
    variants: tuple[Planned, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    perceptual: bool
    needed: int | None
    free: int | None
    notes: tuple[str, ...]

    def makers(self) -> dict[str, SessionMaker]:
        """Sessions, loaded; variants that load the same share one model."""
        found: dict[str, SessionMaker] = {}
        for planned in self.variants:
            ready = [maker.session.again(planned.request) for maker in found.values()]
            session = next((each for each in ready if each is not None), None) or Session(planned.request)
            session.load()
            found[planned.variant.name] = SessionMaker(session, planned.cache)
        return found


def listed(settings: CompareSettings) -> tuple[Variant, ...]:
    """The variants of settings, the baseline first.

    Raises:
        UsageError: a form that cannot be read, two of one name, nothing to compare.
    """
    found = short_names([attention_variant(text) for text in settings.attention])
    if settings.schedule is not None:
        found = [
            variant if "schedule" in variant.settings
            else dataclasses.replace(variant, settings={**variant.settings, "schedule": settings.schedule})
            for variant in found
        ]  # fmt: skip
    if settings.backend != "auto":
        found = [
            dataclasses.replace(variant, settings={**variant.settings, "backend": settings.backend})
            for variant in found
        ]
    found += [Variant(Path(name).stem if "/" in name else name, {"recipe": name}) for name in settings.recipe]
    found += [Variant(text, {"cache": text}) for text in settings.cache]
    found += [written_variant(text) for text in settings.variant]
    found += [from_mapping(str(name), each) for name, each in settings.variants.items()]
    return with_baseline(found, settings.baseline)


def plan(settings: CompareSettings) -> Plan:
    """Check a comparison and fill in what was left open; no weights are read.

    Raises:
        GenkitError: whatever is wrong, with the name of the variant.
        UnsupportedError: less memory is free than the weights and outputs alone need.
    """
    prompts = settings.prompts or (() if settings.prompt is None else (settings.prompt,))
    if settings.prompt is not None and settings.prompts and settings.prompt not in settings.prompts:
        prompts = (settings.prompt, *settings.prompts)
    if not prompts:
        raise UsageError('no prompt: give one or several, as in genkit compare "a red circle moves right" ...')
    if len(set(prompts)) < len(prompts):
        raise UsageError("a prompt is given twice; for several outputs of one prompt give --num-videos")
    variants = listed(settings)
    with_perceptual = _perceptual(settings)
    seed = settings.seed if settings.seed is not None else draw_seed()
    settings = settings.replace(prompt=prompts[0], prompts=prompts, seed=seed)
    planned = tuple(_planned(settings, variant) for variant in variants)
    base = planned[0].request
    for each in planned:
        for prompt in prompts:
            try:
                each.request.read(each.request.settings.replace(prompt=prompt))
            except GenkitError as error:
                raise type(error)(f"variant {each.variant.name}: {error}") from error
    stored = {name: getattr(base.settings, name) for name in settings.field_names() if name not in OWN_FIELDS}
    settings = settings.replace(**{**stored, "num_videos": settings.num_videos, "lora": settings.lora})
    seeds = tuple(seed + number for number in range(settings.num_videos))
    needed, free = _memory(planned, settings)
    notes = dict.fromkeys(
        line if len({line in each.request.notes for each in planned}) == 1 else f"{own.variant.name}: {line}"
        for own in planned
        for line in own.request.notes
    )
    return Plan(settings, planned, tuple(prompts), seeds, with_perceptual, needed, free, tuple(notes))


def _perceptual(settings: CompareSettings) -> bool:
    reason = perceptual.why_not()
    if settings.perceptual and reason is not None:
        raise UnsupportedError(f"--perceptual: {reason}")
    return reason is None if settings.perceptual is None else settings.perceptual


def _planned(settings: CompareSettings, variant: Variant) -> Planned:
    shared = {name: getattr(settings, name) for name in settings.field_names() if name not in OWN_FIELDS}
    defaults = CompareSettings.defaults()
    values = {name: value for name, value in shared.items() if value != defaults.get(name) and value not in (None, ())}
    values["prompt"] = settings.prompt
    values["num_videos"] = 1
    own = dict(variant.settings)
    text = own.pop("cache", None)
    if "lora" in own:
        given = own["lora"]
        own["lora"] = [*settings.lora, *([given] if isinstance(given, str) else given)]
    try:
        cache = None if text is None else parse_cache(str(text))
        made = GenerateSettings.from_mappings((COMMAND_LINE, values), (f"variant {variant.name}", own))
        return Planned(variant, resolve(made), cache)
    except GenkitError as error:
        raise type(error)(f"variant {variant.name}: {error}") from error


def _memory(planned: Sequence[Planned], settings: Settings) -> tuple[int | None, int | None]:
    """Bytes that weights and kept outputs need, and bytes free.

    Raises:
        UnsupportedError: the first is larger, and nothing makes weights smaller than their file.
    """
    loads: dict[Any, int] = {}
    kept = 0
    for each in planned:
        request, made = each.request, each.request.settings
        key = (request.model.folder, str(request.device), str(request.dtype), *(
            getattr(made, name, None) for name in LOADED if name != "steps"))  # fmt: skip
        item = _ITEM.get(str(request.dtype).removeprefix("torch."), 4)
        loads[key] = weights_of(request.model.folder, item)
        frames = (made.num_frames or 1) * (made.height or 0) * (made.width or 0) * 3
        kept += frames + (made.steps or 0) * frames // 12  # latents in float32: 16 channels of an 8x8x4 block
    first = planned[0].request
    needed, free = sum(loads.values()) + kept, memory.free(str(first.device))
    smaller = any(
        each.request.settings.offload != "none" or each.request.settings.quantize is not None for each in planned
    )
    if free is not None and needed > free and not smaller:
        several = f" for {len(loads)} models that are loaded side by side" if len(loads) > 1 else ""
        raise UnsupportedError(
            f"the comparison needs at least {size(needed)}{several} (weights "
            f"{size(sum(loads.values()))}, outputs {size(kept)}) and {size(free)} are free on "
            f"{first.device}; compare fewer variants at once, take --dtype bfloat16, --offload model or --quantize"
        )
    return needed, None if free is None else int(free)


def variants_of(record: dict[str, Any], names: Container[str], origin: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variants that a record names, and its other settings.

    Args:
        record: settings of an earlier comparison. names: settings that the user gives, which it does not decide.
        origin: its file, for messages.

    Raises:
        UsageError: a variant that reads a file: the record may be somebody else's.
    """
    own = {name: record[name] for name in _VARIANTS if record.get(name) and name not in names}
    texts = [str(text) for value in own.values() for text in (value.items() if isinstance(value, dict) else value)]
    for text in texts:
        if "/" in text or "\\" in text or any(f"{name}=" in text or f"'{name}':" in text for name in (*FILES, "lora")):
            raise UsageError(
                f"{origin} names a file in a variant ({shown(text)}), which is not followed; give that variant again "
                "(--variant, --recipe or --attention) if you trust it"
            )
    dropped = {*_VARIANTS, *(("prompt", "prompts") if "prompt" in names or "prompts" in names else ())}
    return own, {name: value for name, value in record.items() if name not in dropped}
