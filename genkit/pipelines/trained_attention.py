"""The attention that LoRA files were trained through: taken from them when asked, and compared with the run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.attention import registry
from genkit.errors import ArtifactError, GenkitError, UsageError, shown
from genkit.lora.facts import Facts, read_facts
from genkit.models.check import check_safetensors
from genkit.pipelines.settings import AUTO, AttentionSettings
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.lora.files import Lora

WEIGHTS = "weights"


def facts_of(lora: Lora) -> Facts | None:
    """What a file says of itself, from its header alone; None for files of other programs."""
    return read_facts(check_safetensors(lora.path).get("__metadata__", {}), place(lora.path))


def taught_by(loras: Sequence[Lora]) -> set[str]:
    """The words that LoRA files say they were trained on and their models did not know, in small letters."""
    told = [facts for facts in map(facts_of, loras) if facts is not None]
    return {
        word
        for facts in told
        for word in (*facts.new_words, *map(str.lower, facts.words), *(facts.trigger_word or "").lower().split())
    }


def from_loras(settings: AttentionSettings, loras: Sequence[Lora]) -> tuple[AttentionSettings, list[str]]:
    """Settings whose ``attention: auto`` is replaced by what the LoRA files were trained through.

    A schedule and single arguments that the user gives count more than the file's. Weights of the method lie beside
    the file.

    Returns:
        The settings, and what was taken, one line; the settings as they are when they do not say ``auto``.

    Raises:
        UsageError: no LoRA, files that do not tell, or that were trained through different attention.
        ArtifactError: weights of the method that are not beside the file.
    """
    if settings.attention != AUTO:
        return settings, []
    if not loras:
        raise UsageError("--attention auto takes the method from a LoRA file; add --lora FILE, or name a method")
    told = {lora: facts_of(lora) for lora in loras}
    known = {lora: facts for lora, facts in told.items() if facts is not None and facts.attention_known}
    if not known:
        raise UsageError(
            f"{place(loras[0].path)} does not tell what attention it was trained through; name a method, or leave "
            "--attention out"
        )
    lora, facts = next(iter(known.items()))
    for other, its in known.items():
        if its.trained_through | {"attention_weights": None} != facts.trained_through | {"attention_weights": None}:
            raise UsageError(
                f"{place(lora.path)} was trained through {_words(facts)}, {place(other.path)} through {_words(its)}; "
                "--attention auto takes one, name a method"
            )
    own = [other.path for other, its in known.items() if its.attention_weights is not None]
    if len(own) > 1 and WEIGHTS not in settings.attention_args:
        files = ", ".join(place(path) for path in own)
        raise UsageError(
            f"--attention auto: {files} bring weights of {facts.attention} each, and a run has one set of them; name "
            "it with --attention-args weights=FILE, or leave a LoRA out"
        )
    name = place(lora.path)
    if facts.attention is None and facts.recipe is None:
        if settings.attention_args or settings.schedule is not None or settings.backend != "auto":
            raise UsageError(f"{name} was trained through the model's own attention, which has no settings")
        return settings.replace(attention=None), [f"attention of {name}: the model's own"]
    if facts.recipe is not None:
        if len(Path(facts.recipe).parts) > 1:
            raise UsageError(f"{name} was trained with the recipe file {shown(facts.recipe)}; give it with --recipe")
        changes: dict[str, Any] = {"attention": None, "recipe": facts.recipe}
    else:
        args = dict(facts.attention_args) | dict(settings.attention_args)
        args |= _weights(lora, facts, settings.attention_args)
        changes = {"attention": facts.attention, "attention_args": args}
    if settings.schedule is None:
        changes["schedule"] = facts.schedule
    return settings.replace(**changes), [f"attention of {name}: {_words(facts)}"]


def _weights(lora: Lora, facts: Facts, given: Mapping[str, Any]) -> dict[str, str]:
    """The method's own weights: beside the file, or under their name in the model's folder."""
    if WEIGHTS in given:
        return {}
    named = facts.attention_weights or facts.attention_args.get(WEIGHTS)
    if named in (None, "none"):
        return {}
    path = lora.path.parent / Path(str(named)).name
    if path.is_file():
        return {WEIGHTS: str(path.resolve())}
    if facts.attention_weights is None:
        return {WEIGHTS: path.name}
    raise ArtifactError(
        f"{place(lora.path)} was trained with weights of {facts.attention} in {shown(path.name)}, which is not beside "
        "it; put it there, or give it with --attention-args weights=FILE"
    )


def remarks(settings: AttentionSettings, loras: Sequence[Lora]) -> list[str]:
    """One line for every LoRA that was trained through other attention than the run's."""
    found = []
    for lora in loras:
        facts = facts_of(lora)
        if facts is None or not facts.attention_known:
            continue
        if _same(settings, facts):
            continue
        here = "the model's own" if settings.attention is None and settings.recipe is None else _words(settings)
        found.append(
            f"LoRA {lora.path.name} was trained through {_words(facts)} attention, this run goes through {here}; "
            "--attention auto takes the LoRA's"
        )
    return found


def _same(settings: AttentionSettings, facts: Facts) -> bool:
    """Whether method, its arguments (but for its weights) and its layers and heads are those of training."""
    if (settings.attention, settings.recipe) != (facts.attention, facts.recipe):
        return False
    if settings.attention is not None and _built(settings) != _built(facts):
        return False
    return settings.attention is None or _places(settings.schedule) == _places(facts.schedule)


def _built(of: Any) -> Any:
    args = {key: value for key, value in of.attention_args.items() if key != WEIGHTS}
    try:
        return registry.build(of.attention, args)
    except GenkitError:  # a method or setting of another version: it is not the same, and the run tells of its own
        return args


def _places(schedule: str | None) -> dict[str, str]:
    """Layers and heads of a schedule; which steps are dense is no part of training."""
    from genkit.pipelines.text import parse_pairs

    pairs = {} if schedule in (None, "recommended") else parse_pairs(schedule, "--schedule")
    return {key: value for key, value in pairs.items() if key in ("layers", "heads")}


def _words(of: Any) -> str:
    """A method with its arguments and schedule, or a recipe, in words."""
    if of.recipe is not None:
        return f"recipe {shown(of.recipe)}"
    if of.attention is None:
        return "the model's own"
    args = ",".join(f"{key}={value}" for key, value in of.attention_args.items() if key != WEIGHTS)
    schedule = f" with schedule {of.schedule}" if of.schedule else ""
    return shown(f"{of.attention}({args}){schedule}" if args else f"{of.attention}{schedule}").strip("'\"")
