"""The difference of two models as a LoRA."""

from __future__ import annotations

import re
from pathlib import Path

from genkit.errors import ArtifactError, UsageError, explain
from genkit.families.lookup import records
from genkit.lora.facts import Facts
from genkit.lora.keys import short
from genkit.lora.lowrank import Cut, decompose
from genkit.lora.merge import Made, summed
from genkit.lora.weights import PartWeights, weights_of
from genkit.models.check import fingerprint, read_index, read_part_config
from genkit.reading.files import place

#: Last names of matrices that are looked up, not multiplied with: a LoRA of them is read by few programs.
_TABLES = ("token_embedding", "position_embedding", "embed_tokens", "shared", "relative_attention_bias", "wte", "wpe")


def extract(
    base: Path,
    tuned: Path,
    rank: int | None = None,
    error: float | None = None,
    parts: tuple[str, ...] = (),
    targets: str | None = None,
    name: str | None = None,
) -> tuple[Made, list[str]]:
    """The LoRA that turns one model into another as nearly as a rank allows.

    Args:
        base, tuned: pipeline folders of one architecture.
        rank, error: as for :func:`genkit.lora.lowrank.decompose`, of every layer.
        parts: which parts to compare; all that differ when empty.
        targets: regular expression for whole names of layers; all matrices when None.
        name: the base model as settings store it.

    Returns:
        The LoRA, and what it cannot hold (biases, norms, tables, layers that are no target), one line each.

    Raises:
        UsageError: no such part, or a regular expression that is none.
        ArtifactError: other layers or sizes in the two, or nothing that differs.
    """
    chosen = _pattern(targets)
    one, two = weights_of(base), weights_of(tuned)
    for part in parts:
        if part not in one:
            raise UsageError(explain("--part", part, sorted(one)))
    cuts: dict[tuple[str, str], Cut] = {}
    left: dict[str, list[str]] = {}
    for part, weights in one.items():
        if parts and part not in parts:
            continue
        if part not in two:
            raise ArtifactError(f"{place(tuned)} has no part {part}; the two are not models of one kind")
        _compare(weights, two[part], chosen, rank, error, cuts, left)
    if not cuts:
        raise ArtifactError(f"{place(base)} and {place(tuned)} do not differ in any layer that a LoRA can change")
    told = [
        f"{len(names)} {kind} differ too, which the LoRA does not hold, the first is {names[0]}"
        for kind, names in left.items()
    ]
    family, pipeline = _family(base), read_index(base)["_class_name"]
    facts = Facts(
        made_by="extract", family=family, pipeline=pipeline, base_model=name, base_fingerprint=fingerprint(base),
        sources=[f"{tuned.name} {fingerprint(tuned)}"], attention_known=False,
    )  # fmt: skip
    return summed(cuts, Made({}, () if family is None else (family,), facts)), told


def _pattern(targets: str | None) -> re.Pattern | None:
    if targets is None:
        return None
    try:
        return re.compile(targets)
    except re.error as error:
        raise UsageError(explain("--targets", targets, f"a regular expression ({error})")) from error


def _compare(
    one: PartWeights,
    two: PartWeights,
    chosen: re.Pattern | None,
    rank: int | None,
    error: float | None,
    cuts: dict[tuple[str, str], Cut],
    left: dict[str, list[str]],
) -> None:
    """Decompose every difference of a part, and note what cannot be."""
    import torch

    if one.shapes != two.shapes:
        key = next(iter({*one.shapes.items()} ^ {*two.shapes.items()}))[0]
        raise ArtifactError(
            f"{one.name}: {short(key)} is {one.shapes.get(key, 'absent')} in {place(one.folder)} and "
            f"{two.shapes.get(key, 'absent')} in {place(two.folder)}; the two are not models of one kind"
        )
    for key in one.files:
        first, second = one.read(key), two.read(key)
        if torch.equal(first, second):
            continue
        change = second.float() - first.float()
        module = key.removesuffix(".weight")
        if not bool(change.isfinite().all()):
            raise ArtifactError(f"{short(f'{one.name}.{key}')} differs by NaN or infinite values")
        kind = _kind(key, first, module, chosen)
        if kind is None:
            cuts[one.name, module] = decompose(change, rank, error)
        else:
            left.setdefault(kind, []).append(short(f"{one.name}.{key}"))


def _kind(key: str, weight, module: str, chosen: re.Pattern | None) -> str | None:
    """Why a tensor goes into no LoRA; None for one that does."""
    if not key.endswith(".weight") or weight.ndim < 2:
        return "biases, norms and tables"
    if module.rpartition(".")[2] in _TABLES:
        return "tables"
    if chosen is not None and not chosen.fullmatch(module):
        return "layers that --targets leaves out"
    return None


def _family(folder: Path) -> str | None:
    """The family of a pipeline folder's denoiser."""
    for part in ("transformer", "unet"):
        name = read_part_config(folder, part).get("_class_name")
        found = next((family.name for family in records() if name in family.classes), None)
        if found is not None:
            return found
    return None
