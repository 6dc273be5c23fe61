"""What a LoRA file holds: pairs of halves by module, under the names of the model that it is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, counted, said
from genkit.families.lookup import diffusers_class, records
from genkit.families.originals.base import Originals
from genkit.families.originals.lookup import originals
from genkit.lora.door import has_loader, loadable
from genkit.lora.files import Lora
from genkit.lora.keys import DOWN, KEY, TRANSLATED, is_peft, peft_name, short, simplified
from genkit.lora.lokr import lora_of_lokr
from genkit.lora.names import flat_names, to_diffusers
from genkit.lora.pair import Pair
from genkit.reading import parse_json, read_json
from genkit.reading.files import place
from genkit.schema import open_keys, read

if TYPE_CHECKING:
    import torch


@dataclass
class Held:
    """What a file holds: pairs by (part of the pipeline, module), and whether Diffusers reads it the same way."""

    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    plain: bool = True


def read_pairs(pipeline: Any, lora: Lora, raw: dict[str, torch.Tensor], facts: Mapping[str, str]) -> Held:
    """The pairs of a file under the pipeline's own names."""
    held = Held()
    plain, changed = simplified_tensors(lora, raw)
    held.plain = not changed
    plain, alphas = _named(pipeline, lora, held, plain)
    parts = parts_of(pipeline)
    take(held, lora, plain, lambda key: part_of(pipeline, parts, key))
    if any(not key.startswith(f"{part_of(pipeline, parts, key)[0]}.") for key in plain):
        held.plain = False
    if alphas and any(part.startswith("text_encoder") for part, _ in held.pairs):
        held.plain = False  # Diffusers mistakes these names unless every kind of layer is there
    for key, value in alphas.items():
        part, rest = part_of(pipeline, parts, key.removesuffix(".alpha"))
        found = KEY.fullmatch(peft_name(part, rest))
        if found and (part, found["module"]) in held.pairs:
            held.pairs[part, found["module"]].alpha = float(value)
    finish(held, lora, facts)
    if any(pair.bias is not None for pair in held.pairs.values()):
        _fill_biases(held)
    return held


def simplified_tensors(lora: Lora, raw: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors without what peft adds to their names when it saves by itself, and whether anything changed: numbers of
    8 bits, which nothing computes with, are given in single precision, exactly."""
    plain: dict[str, torch.Tensor] = {}
    for key, value in raw.items():
        if simplified(key) in plain:
            raise ArtifactError(_twice(lora, simplified(key)))
        small = value.is_floating_point() and value.dtype.itemsize == 1
        plain[simplified(key)] = value.float() if small else value
    plain = lora_of_lokr(plain, _lokr_alphas(lora), place(lora.path))
    return plain, len(plain) != len(raw) or any(plain.get(key) is not value for key, value in raw.items())


def _lokr_alphas(lora: Lora) -> Callable[[str, int], float | None]:
    """The alphas of LoKr that peft writes beside a file."""
    beside = lora.path.with_name("adapter_config.json")
    if not beside.is_file():
        return lambda module, rank: None
    config = read(_Lokr, read_json(beside), place(beside), ArtifactError)
    return lambda module, rank: next(
        (float(value) for name, value in config.alpha_pattern.items() if _matches(name, module)), config.alpha
    )


def take(
    held: Held, lora: Lora, tensors: Mapping[str, torch.Tensor], place_of: Callable[[str], tuple[str, str]]
) -> None:
    """Put tensors under Diffusers' names into pairs; ``place_of`` gives the part of a name and the rest of it."""
    for key, value in tensors.items():
        _add(held, lora, *place_of(key), value)


def finish(held: Held, lora: Lora, facts: Mapping[str, str]) -> None:
    """Check that pairs are whole, and fill in alphas from the file's texts."""
    for (part, module), pair in held.pairs.items():
        _check_pair(lora, part, module, pair)
    _fill_alphas(held, lora, facts)


def _named(
    pipeline: Any, lora: Lora, held: Held, plain: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A file under the pipeline's names, and the alphas that Diffusers keeps apart.

    Diffusers' own translation counts where it takes all of a file. It knows no names of some families, leaves out what
    it does not know, and refuses files without some kinds of layers; there the records of names are used.
    """
    record = record_of(pipeline)
    prefixed = any(key.startswith(TRANSLATED) for key in plain)
    own = to_diffusers(plain, record, flat_names(pipeline, parts_of(pipeline)))
    if prefixed:
        try:
            theirs = _translated(pipeline, lora, plain)
        except ArtifactError:
            if own.unknown:
                raise
        else:
            if own.unknown or _fields(pipeline, own.tensors) <= _fields(pipeline, theirs[0]):
                return theirs
    elif own.unknown or not any(_is_original(record, key) for key in plain):
        if any(key.endswith(".alpha") or not is_peft(key) for key in plain):
            held.plain = False
        return plain, {}
    held.plain = False
    return own.tensors, {}


def _fields(pipeline: Any, tensors: Mapping[str, torch.Tensor]) -> set[tuple[str, str, str]]:
    """(part, module, half) of everything that takes effect."""
    parts = parts_of(pipeline)
    found = set()
    for key in tensors:
        part, rest = part_of(pipeline, parts, key)
        match = KEY.fullmatch(peft_name(part, rest))
        if match:
            half = "A" if match["half"] in DOWN else "B"
            found.add((part, match["module"], match["kind"] if match["kind"] == "bias" else half))
    return found


def _is_original(record: Originals | None, key: str) -> bool:
    """Whether a name without a known prefix is one of the authors' and not one of Diffusers'."""
    match = KEY.fullmatch(key)
    if record is None or match is None:
        return False
    module = match["module"].removeprefix(f"{record.part}.")
    return record.of_ours(module) is None and record.of_original(module) is not None


def record_of(pipeline: Any) -> Originals | None:
    """The names of the layers of a pipeline's family, as other programs have them; None when there is no record."""
    for part in ("transformer", "unet"):
        name = diffusers_class(getattr(pipeline, part, None))
        family = next((family.name for family in records() if name in family.classes), None)
        if family in originals():
            return originals()[family]
    return None


#: Converters are not written for files that lack something.
CONVERTERS_RAISE = (
    ValueError, RuntimeError, KeyError, NotImplementedError, TypeError, IndexError, AttributeError, AssertionError,
)  # fmt: skip


def _translated(
    pipeline: Any, lora: Lora, plain: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Names of other programs as Diffusers translates them, and the alphas that it keeps apart."""
    if not has_loader(pipeline):
        raise ArtifactError(
            f"{place(lora.path)} has names of another program, which Diffusers translates for no "
            f"{type(pipeline).__name__}; give a file with names of Diffusers or PEFT"
        )
    more = {"unet_config": pipeline.unet.config} if getattr(pipeline, "unet", None) is not None else {}
    apart = {key: value.clone() for key, value in plain.items()}  # some are multiplied where they lie
    try:
        found = pipeline.lora_state_dict(apart, return_lora_metadata=True, return_alphas=True, **more)
    except CONVERTERS_RAISE as error:
        raise ArtifactError(
            f"{place(lora.path)} cannot be translated for {type(pipeline).__name__}: {said(error)}; "
            "a module may lack its alpha or one of its halves, or it was made for another model"
        ) from error
    weights, *others = found if isinstance(found, tuple) else (found,)
    alphas: dict[str, Any] = next(
        (other for other in others if other and all(key.endswith(".alpha") for key in other)), {}
    )
    return weights, alphas


def parts_of(pipeline: Any) -> list[str]:
    """Names of the parts that take LoRA and are there, longest first."""
    named = [name for name in loadable(pipeline) if getattr(pipeline, name, None) is not None]
    return sorted(named, key=len, reverse=True)


def part_of(pipeline: Any, parts: Sequence[str], key: str) -> tuple[str, str]:
    """The part that a name belongs to, and the rest of the name; without a prefix, the denoiser."""
    for part in parts:
        if key.startswith(f"{part}."):
            rest = key.removeprefix(f"{part}.")
            flat = part.startswith("text_encoder") and not hasattr(getattr(pipeline, part), "text_model")
            return part, rest.removeprefix("text_model.") if flat else rest  # as Diffusers does it
    first = key.partition(".")[0]
    if first in ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"):
        return first, key.removeprefix(f"{first}.")  # a part that this pipeline does not have
    return next((part for part in ("unet", "transformer") if part in parts), parts[-1]), key


def _add(held: Held, lora: Lora, part: str, key: str, value: torch.Tensor) -> None:
    name = peft_name(part, key)
    found = KEY.fullmatch(name)
    if name.endswith(".alpha"):
        module, field = name.removesuffix(".alpha"), "alpha"
        if value.numel() != 1:
            raise ArtifactError(
                f"{place(lora.path)}: the alpha of {short(f'{part}.{module}')} has shape {tuple(value.shape)}, "
                "allowed: one number"
            )
        value = float(value)
    elif ".lora_magnitude_vector" in name:
        module, field = name.partition(".lora_magnitude_vector")[0], "magnitude"
    elif found is None:
        raise ArtifactError(f"{place(lora.path)} holds {short(key)}, which is no part of a LoRA")
    else:
        down = found["half"] in DOWN
        module, field = found["module"], "bias" if found["kind"] == "bias" else "down" if down else "up"
    pair = held.pairs.setdefault((part, module), Pair())
    if getattr(pair, field) is not None:
        raise ArtifactError(_twice(lora, f"{part}.{key}"))
    setattr(pair, field, value if field == "alpha" else _floating(lora, f"{part}.{key}", value))


def _floating(lora: Lora, key: str, value: torch.Tensor) -> torch.Tensor:
    if value.is_floating_point():
        return value
    kind = str(value.dtype).removeprefix("torch.")
    raise ArtifactError(f"{place(lora.path)}: {short(key)} is of type {kind}; allowed: floating point")


def _twice(lora: Lora, key: str) -> str:
    return f"{place(lora.path)} holds {short(key)} twice, under two names; which of them counts is not known"


def _check_pair(lora: Lora, part: str, module: str, pair: Pair) -> None:
    if pair.down is None or pair.up is None:
        missing = "lora_A" if pair.down is None else "lora_B"
        raise ArtifactError(f"{place(lora.path)} has no {missing} for {short(f'{part}.{module}')}; it is incomplete")
    fit = min(pair.down.ndim, pair.up.ndim) >= 2 and pair.down.shape[0] == pair.up.shape[1]
    if not fit or not pair.down.numel() or not pair.up.numel():
        shapes = f"{tuple(pair.down.shape)} and {tuple(pair.up.shape)}"
        raise ArtifactError(f"{place(lora.path)}: the halves of {short(f'{part}.{module}')} have shapes {shapes}")
    if pair.alpha is not None and not math.isfinite(pair.alpha):
        raise ArtifactError(f"{place(lora.path)}: the alpha of {short(f'{part}.{module}')} is {pair.alpha}")


@open_keys
@dataclass(frozen=True)
class _Adapter:
    """What peft stores beside or inside a file about its scale."""

    peft_type: str | None = None
    r: int | None = None
    lora_alpha: int | float | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)
    use_rslora: bool = False

    def alpha(self, module: str, rank: int) -> float | None:
        """The alpha that gives a module its scale when divided by its rank."""
        fits = next((value for name, value in self.alpha_pattern.items() if _matches(name, module)), self.lora_alpha)
        if fits is None:
            return None
        return float(fits) * math.sqrt(rank) if self.use_rslora else float(fits)


@open_keys
@dataclass(frozen=True)
class _Lokr:
    """What peft stores beside LoKr about its scale."""

    alpha: int | float | None = None
    alpha_pattern: dict[str, int | float] = field(default_factory=dict)


def _matches(pattern: str, module: str) -> bool:
    plain = pattern.removeprefix("^").removesuffix(".lora_B.weight")
    return module == plain or module.endswith(f".{plain}")


def _fill_alphas(held: Held, lora: Lora, facts: Mapping[str, str]) -> None:
    """Alphas from the file's metadata, or from the adapter_config.json that peft writes beside it."""
    name = f"{place(lora.path)}, lora_adapter_metadata"
    stored = read(dict[str, Any], parse_json(facts.get("lora_adapter_metadata", "{}"), name), name, ArtifactError)
    beside = lora.path.with_name("adapter_config.json")
    config = None
    if not stored and not held.plain and beside.is_file():
        config = read(_Adapter, read_json(beside), place(beside), ArtifactError)
        if config.peft_type == "LOKR":  # its scale is in the halves
            config = None
    by_part: dict[str, _Adapter] = {}
    for (part, module), pair in held.pairs.items():
        if part not in by_part:
            own = {key.removeprefix(f"{part}."): value for key, value in stored.items() if key.startswith(f"{part}.")}
            by_part[part] = read(_Adapter, own, name, ArtifactError) if own else config or _Adapter()
        if pair.alpha is None:
            pair.alpha = by_part[part].alpha(module, pair.down.shape[0])
    given = [pair.alpha is not None for pair in held.pairs.values()]
    if any(given) and not all(given):
        part, module = next(key for key, pair in held.pairs.items() if pair.alpha is None)
        raise ArtifactError(
            f"{place(lora.path)} has an alpha for {sum(given)} of {counted(len(given), 'module')}, none for "
            f"{short(f'{part}.{module}')}; its strength there is not known"
        )


def _fill_biases(held: Held) -> None:
    """Zeros where only other modules have a bias: peft would leave them without values."""
    import torch

    for pair in held.pairs.values():
        if pair.bias is None:
            pair.bias = torch.zeros(pair.up.shape[0], dtype=pair.up.dtype)
            held.plain = False
