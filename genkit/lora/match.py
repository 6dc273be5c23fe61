"""Which modules of a model the pairs of a LoRA file fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit.errors import ArtifactError, UsageError, counted, explain
from genkit.lora.facts import Facts, read_facts
from genkit.lora.files import Lora
from genkit.lora.keys import short
from genkit.lora.pair import Pair
from genkit.lora.pairs import Held, parts_of, read_pairs
from genkit.reading.files import place

EXPERTS = ("transformer", "transformer_2")


@dataclass(frozen=True)
class Group:
    """What of a file goes into one part together.

    Args:
        part: the expert, or the denoiser with the text encoders.
        pairs: by (part, module), all of which have a place.
        same: Diffusers reads the file itself the same way.
    """

    part: str
    pairs: dict[tuple[str, str], Pair]
    same: bool


@dataclass(frozen=True)
class Matched:
    """A file matched with a model.

    Args:
        lora: as the user named it.
        groups: what goes where.
        told: what the user should know, one line each.
        facts: what the file says of itself; None when genkit did not make it.
    """

    lora: Lora
    groups: list[Group]
    told: list[str]
    facts: Facts | None


def match(pipeline: Any, lora: Lora, partial: bool | None) -> Matched:
    """Read a file and find the modules of a pipeline, or of its outline, that it changes.

    Args:
        pipeline: with or without values.
        lora: the file.
        partial: use what fits of a file that fits in part, instead of refusing it; None where nobody can ask for that,
            so that no message advises it.

    Raises:
        UsageError: the pipeline has no such part.
        ArtifactError: a file that does not fit, or with weights that are no numbers.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(lora.path, "pt") as stream:
        texts = stream.metadata() or {}
    facts = read_facts(texts, place(lora.path))
    held = read_pairs(pipeline, lora, load_file(lora.path), texts)
    for (part, module), pair in held.pairs.items():
        pair.check_finite(f"{place(lora.path)}: {short(f'{part}.{module}')}")
    groups: list[Any] = []
    told: list[str] = []
    component = None if facts is None else facts.component
    for part, pairs in targets(pipeline, lora, held, told, component).items():
        used = fitting(pipeline, lora, part, pairs, partial, told)
        same = held.plain and lora.path.suffix == ".safetensors"  # Diffusers takes other names for pickles
        groups.append(Group(part, used, same and len(used) == len(pairs) == len(held.pairs)))
    return Matched(lora, groups, told, facts)


def targets(
    pipeline: Any, lora: Lora, held: Held, told: list[str], component: str | None = None
) -> dict[str, dict[tuple[str, str], Pair]]:
    """Which pairs to load together, by the expert that they go to (or the denoiser, text encoders with it).

    Args:
        component: the expert that the file says it was trained for; the user's word counts more.
    """
    parts = parts_of(pipeline)
    if lora.part is not None and lora.part not in parts:
        raise UsageError(explain(f"part of {place(lora.path)}", lora.part, sorted(parts)))
    named = {part for part, _ in held.pairs}
    if not set(EXPERTS) <= set(parts):
        kept = {key: pair for key, pair in held.pairs.items() if lora.part in (None, key[0])}
        if not kept:
            raise ArtifactError(
                f"{place(lora.path)} holds nothing for {lora.part}, only for {', '.join(sorted(named))}"
            )
        return {parts[-1] if lora.part is None else lora.part: kept}
    if EXPERTS[1] in named and lora.part is None:
        groups: dict[str, dict[tuple[str, str], Pair]] = {}
        for (part, module), pair in held.pairs.items():
            groups.setdefault(EXPERTS[1] if part == EXPERTS[1] else EXPERTS[0], {})[part, module] = pair
        return groups
    chosen = lora.part or (component if component in EXPERTS else None)
    wanted = EXPERTS if chosen is None else (chosen,)
    if chosen is None:
        told.append(
            f"LoRA {lora.path.name} was applied to both experts; "
            f"to choose one add :{EXPERTS[0]} or :{EXPERTS[1]} to its name (part= of genkit.load_lora)"
        )
    own = chosen if chosen in named else EXPERTS[0]
    pairs = {module: pair for (part, module), pair in held.pairs.items() if part == own}
    return {part: {(part, module): pair for module, pair in pairs.items()} for part in wanted}


def fitting(
    pipeline: Any, lora: Lora, part: str, pairs: dict[tuple[str, str], Pair], partial: bool | None, told: list[str]
) -> dict[tuple[str, str], Pair]:
    """The pairs that have a module of their shape; all of them, unless ``partial``."""
    reasons = {key: _why_unfit(pipeline, *key, pair) for key, pair in pairs.items()}
    used = {key: pair for key, pair in pairs.items() if reasons[key] is None}
    if len(used) == len(pairs):
        return used
    first = next(key for key, why in reasons.items() if why is not None)
    line = (
        f"{place(lora.path)}: used {len(used)} of {counted(len(pairs), 'module')} for "
        f"{type(pipeline).__name__}'s {part}, "
        f"first unused {short('.'.join(first))} ({reasons[first]})"
    )
    if not used:
        raise ArtifactError(f"{line}; it does not fit, it was made for another model")
    if not partial:
        advice = "; --lora-partial (partial=True of genkit.load_lora) loads what fits" if partial is False else ""
        raise ArtifactError(f"{line}; it does not fit this model{advice}")
    told.append(line)
    return used


def _why_unfit(pipeline: Any, part: str, module: str, pair: Pair) -> str | None:
    if part not in parts_of(pipeline):
        return f"the pipeline has no {part} that takes LoRA"
    try:
        found = getattr(pipeline, part).get_submodule(module)
    except AttributeError:
        return "the model has no such module"
    weight = getattr(getattr(found, "base_layer", found), "weight", None)
    if weight is None or weight.ndim < 2:
        return f"it is a {type(found).__name__}, which takes no LoRA"
    here, there = (weight.shape[1], weight.shape[0]), (pair.down.shape[1], pair.up.shape[0])
    return None if here == there else f"it maps {here[0]} to {here[1]} here, {there[0]} to {there[1]} in the file"
