"""Several LoRAs as one, exactly, and one of a smaller rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.lora.contents import Contents
from genkit.lora.facts import Facts
from genkit.lora.info import source_of
from genkit.lora.keys import short
from genkit.lora.lowrank import Cut, cut, norm, relative
from genkit.lora.pair import Pair
from genkit.lora.words import words_of
from genkit.reading.files import place

Pairs = dict[tuple[str, str], Pair]


@dataclass(frozen=True)
class Made:
    """A LoRA in the making.

    Args:
        pairs: with a scale of one.
        families: whose layers they may be.
        facts: what the file will say.
        error: relative error of a decomposition over all modules; 0 where there was none.
        worst: the largest of a module, and its name; None where there was no decomposition.
    """

    pairs: Pairs
    families: tuple[str, ...]
    facts: Facts
    error: float = 0.0
    worst: tuple[str, float] | None = None


def merge(
    files: Sequence[tuple[Contents, float]],
    rank: int | None = None,
    error: float | None = None,
    different_bases: bool = False,
) -> Made:
    """One LoRA whose change is the weighted sum of several.

    The halves are put side by side ("cat" in peft), so the ranks add up and nothing is lost; averaging the halves
    ("linear") would not give the sum. A rank or an error cuts the sum down afterwards.

    Args:
        files: LoRAs with their strengths.
        rank, error: as for :func:`resize`; the exact sum when both are None.
        different_bases: allow LoRAs that were trained on different models of one family.

    Raises:
        UsageError: fewer than two files.
        ArtifactError: LoRAs of different families, shapes or, unless allowed, base models.
        UnsupportedError: DoRA, whose changes do not add up.
    """
    if len(files) < 2:
        raise UsageError("merging takes at least two LoRA files; give their names, with @0.5 for a strength")
    families = _common(files, different_bases)
    found: Pairs = {}
    for contents, strength in files:
        for (part, module), pair in contents.folded.items():
            name = f"{place(contents.path)}: {short(f'{part}.{module}')}"
            if pair.magnitude is not None:
                raise UnsupportedError(f"{name} is DoRA, which changes lengths of rows and does not add up with others")
            one = _times(pair, strength)
            before = found.get((part, module))
            found[part, module] = one if before is None else _beside(before, one, name)
    made = Made(found, families, _merged_facts(files, families))
    return made if rank is None and error is None else resize(made, rank, error)


def resize(made: Made, rank: int | None = None, error: float | None = None) -> Made:
    """The same LoRA with smaller ranks, as near as possible.

    Args:
        made: pairs with a scale of one.
        rank: of every module that has more.
        error: in place of ``rank``: every module gets the smallest rank with at most this relative error.

    Raises:
        UnsupportedError: DoRA.
    """
    name = next((key for key, pair in made.pairs.items() if pair.magnitude is not None), None)
    if name is not None:
        raise UnsupportedError(f"{short('.'.join(name))} is DoRA, whose lengths of rows belong to the whole change")
    cuts = {}
    for key, pair in made.pairs.items():
        kept = rank is not None and pair.rank <= rank
        cuts[key] = Cut(pair, 0.0, norm(pair) ** 2) if kept else cut(pair, rank, error)
    return summed(cuts, made)


def summed(cuts: dict[tuple[str, str], Cut], made: Made) -> Made:
    """A LoRA of approximations, with their error over all modules."""
    error = relative(sum(each.lost for each in cuts.values()), sum(each.whole for each in cuts.values()))
    worst = max(cuts, key=lambda key: cuts[key].error)
    ranks = {each.pair.rank for each in cuts.values()}
    facts = made.facts.replace(error=error, rank=ranks.pop() if len(ranks) == 1 else None, alpha=None)
    pairs = {key: each.pair for key, each in cuts.items()}
    return Made(pairs, made.families, facts, error, (".".join(worst), cuts[worst].error))


def _common(files: Sequence[tuple[Contents, float]], different_bases: bool) -> tuple[str, ...]:
    """The families that all fit; different base models are refused."""
    first = files[0][0]
    families = first.families
    for contents, _ in files[1:]:
        names = f"{place(first.path)} and {place(contents.path)}"
        shared = tuple(name for name in families if name in contents.families)
        if families and contents.families and not shared:
            raise ArtifactError(
                f"{names} are for different models: {', '.join(first.families)} and {', '.join(contents.families)}"
            )
        families = shared or families or contents.families
        bases = [each.facts.base_fingerprint if each.facts else None for each in (first, contents)]
        if None not in bases and bases[0] != bases[1] and not different_bases:
            told = [each.facts.base_model or "an unnamed model" for each in (first, contents)]
            raise ArtifactError(
                f"{names} were trained on different models: {told[0]} ({bases[0]}) and {told[1]} ({bases[1]}); "
                "--different-bases merges them all the same"
            )
    return families


def _times(pair: Pair, strength: float) -> Pair:
    if strength == 1:
        return pair
    bias = None if pair.bias is None else (pair.bias.double() * strength).to(pair.bias.dtype)
    return Pair(down=pair.down, up=(pair.up.double() * strength).to(pair.up.dtype), bias=bias)


def _beside(one: Pair, other: Pair, name: str) -> Pair:
    import torch

    shapes = [(pair.up.shape[0], *pair.down.shape[1:]) for pair in (one, other)]
    if shapes[0] != shapes[1]:
        raise ArtifactError(f"{name} changes a weight of {shapes[1]}, another file one of {shapes[0]}: other models")
    dtype = torch.promote_types(one.up.dtype, other.up.dtype)
    biases = [pair.bias.to(dtype) for pair in (one, other) if pair.bias is not None]
    return Pair(
        down=torch.cat([one.down.to(dtype), other.down.to(dtype)]),
        up=torch.cat([one.up.to(dtype), other.up.to(dtype)], 1),
        bias=sum(biases[1:], biases[0]) if biases else None,
    )


def _merged_facts(files: Sequence[tuple[Contents, float]], families: tuple[str, ...]) -> Facts:
    """What all files say alike; where they differ, nothing."""
    facts = [contents.facts for contents, _ in files]
    known = [each for each in facts if each is not None]
    alike: dict[str, Any] = {}
    if len(known) == len(files):
        for name in ("pipeline", "base_model", "base_fingerprint", "component"):
            values = {getattr(each, name) for each in known}
            alike[name] = values.pop() if len(values) == 1 else None
        trained = [each.trained_through for each in known]
        if all(each == trained[0] for each in trained):
            alike |= trained[0]
        else:
            alike["attention_known"] = False
        words = dict.fromkeys(each.trigger_word for each in known if each.trigger_word)
        alike["trigger_word"] = ", ".join(words) or None
    else:
        alike["attention_known"] = False
    return Facts(
        made_by="merge",
        words=words_of([(contents.path, contents.facts) for contents, _ in files]),
        family=families[0] if len(families) == 1 else None,
        sources=[source_of(contents.path, strength) for contents, strength in files],
        **alike,
    )
