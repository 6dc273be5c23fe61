"""What is compared: names, and what is different from the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genkit.errors import UsageError, explain, shown
from genkit.pipelines.text import parse_pairs

DENSE = "dense"
#: Settings that a variant may have of its own: none of them changes what is asked for, its size or its noise.
OWN = (
    "attention", "attention_args", "schedule", "backend", "recipe", "lora", "lora_router", "lora_mask", "lora_layers",
    "lora_steps", "lora_partial", "fast", "steps", "guidance_scale", "negative_prompt", "scheduler", "flow_shift",
    "dtype", "quantize", "denoiser", "vae_tiling", "word_form", "cache",
)  # fmt: skip
_SCHEDULES = ("steps", "layers", "branches", "heads")


@dataclass(frozen=True)
class Variant:
    """One thing to compare.

    Args:
        name: shown in the report; unlike the others'.
        settings: of ``genkit generate``, beside those that all share; and ``cache``.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The settings in one line."""
        return "; ".join(f"{key}={_text(value)}" for key, value in self.settings.items()) or "the model as it is"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={each}" for key, each in value.items())
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def attention_variant(text: str) -> Variant:
    """``NAME[:key=value,...][@steps=4:,layers=1:]`` (or ``@recommended``) as a variant.

    Raises:
        UsageError: a form that cannot be read.
    """
    before, mark, after = text.rpartition("@")
    scheduled = bool(mark) and (after == "recommended" or after.partition("=")[0] in _SCHEDULES)
    method, _, rest = (before if scheduled else text).partition(":")
    if not method:
        raise UsageError(explain("--attention", text, "a method, as in radial:block_size=64@steps=4:"))
    settings: dict[str, Any] = {"attention": method}
    if rest:
        settings["attention_args"] = parse_pairs(rest, f"--attention {method}")
    if scheduled:
        settings["schedule"] = after
    return Variant(text, settings)


def short_names(variants: list[Variant]) -> list[Variant]:
    """Variants of attention by the method's name alone where that tells them apart, else as they were written."""
    methods = [variant.settings["attention"] for variant in variants]
    alone = [methods.count(method) == 1 for method in methods]
    return [
        replace(variant, name=method) if one else variant
        for variant, method, one in zip(variants, methods, alone, strict=True)
    ]


def written_variant(text: str) -> Variant:
    """``[NAME: ]setting=value; setting=value`` as a variant; the settings are those of ``genkit generate``.

    Raises:
        UsageError: a form that cannot be read, or a setting that a variant cannot have.
    """
    name, mark, rest = text.partition(": ")
    if not mark or "=" in name:
        name, rest = text.strip(), text
    settings: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in rest.split(";"))):
        key, mark, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not mark:
            raise UsageError(explain("--variant", text, "NAME: setting=value; setting=value"))
        settings[key] = [*settings.get(key, []), value.strip()] if key in ("lora", "denoiser") else value.strip()
    found = checked(Variant(name.strip(), settings))
    return replace(found, settings={key: _typed(key, value) for key, value in found.settings.items()})


def _typed(key: str, value: Any) -> Any:
    """A written value as its setting's type: numbers and switches, which other settings keep as texts."""
    from genkit import schema
    from genkit.pipelines.request import flag
    from genkit.pipelines.settings import GenerateSettings

    hint = schema.hints_of(GenerateSettings).get(key)
    kind = None if hint is None else schema.kinds(hint)[0]
    if kind in (int, float):
        return schema.number(value, kind, f"{flag(key)} of a variant")
    if kind is bool:
        return schema.read(bool, {"true": True, "false": False}.get(value.lower(), value), f"{flag(key)} of a variant")
    return value


def checked(variant: Variant) -> Variant:
    """The variant, when all its settings may differ; UsageError else."""
    for key in variant.settings:
        if key not in OWN:
            raise UsageError(explain(f"setting of variant {shown(variant.name)}", key, OWN))
    return variant


def from_mapping(name: str, settings: Any) -> Variant:
    """A variant of a configuration file: a mapping of settings, or a text as ``--attention`` takes it.

    Raises:
        UsageError: anything else.
    """
    if isinstance(settings, str):
        return Variant(name, attention_variant(settings).settings)
    if settings is None:
        return Variant(name)
    if not isinstance(settings, Mapping):
        raise UsageError(
            explain(f"variant {shown(name)}", settings, "settings of genkit generate, as names and values")
        )
    return checked(Variant(name, {str(key).replace("-", "_"): value for key, value in settings.items()}))


def check_name(name: str, own: bool, words: str) -> None:
    """Refuse a name that would mislead in a report.

    Args:
        name: of a variant. own: whether anything is different from the model as it is. words: what, for messages.

    Raises:
        UsageError: no name, or that of the model's own attention for something else.
    """
    if not name.strip():
        raise UsageError(f"a variant has no name ({words}); write it as 'NAME: setting=value'")
    if name == DENSE and own:
        raise UsageError(
            f"{DENSE!r} is the model's own attention and has no settings of its own (got {words}); "
            "give the variant another name"
        )


def with_baseline(variants: Iterable[Variant], baseline: str) -> tuple[Variant, ...]:
    """The variants with the baseline as the first of them.

    Raises:
        UsageError: a misleading name, two of one name, nothing to compare, or a baseline that is none of them.
    """
    listed = list(variants)
    names = [variant.name for variant in listed]
    for variant in listed:
        check_name(variant.name, bool(variant.settings), variant.words)
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"two variants are called {shown(doubled)}: give one of them another name or leave it out")
    if baseline == DENSE and DENSE not in names:
        listed.insert(0, Variant(DENSE))
    elif baseline not in names:
        raise UsageError(explain("--baseline", baseline, [DENSE, *names]))
    if len(listed) < 2:
        raise UsageError(
            "nothing to compare: give --attention NAME, --recipe NAME, --cache NAME or --variant 'NAME: setting=value'"
        )
    first = next(variant for variant in listed if variant.name == baseline)
    return (first, *(variant for variant in listed if variant is not first))
