"""A LoRA file read without a model: its pairs under Diffusers' names, its form, family and facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import ArtifactError
from genkit.families.originals.base import Originals
from genkit.families.originals.lookup import originals, originals_named
from genkit.lora.facts import Facts, read_facts
from genkit.lora.files import Lora, lora_file
from genkit.lora.keys import KEY, TRANSLATED, peft_name, short
from genkit.lora.names import find, form_of, to_diffusers
from genkit.lora.pair import Pair
from genkit.lora.pairs import Held, finish, simplified_tensors, take
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

#: What names of Diffusers may begin with.
_PARTS = (
    "transformer", "transformer_2", "unet", "prior", "text_encoder", "text_encoder_2", "text_encoder_3", "connectors",
)  # fmt: skip
#: Parts whose layers no record of a family has.
_TEXTS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "connectors.", "prior.")


@dataclass(frozen=True)
class Contents:
    """What a LoRA file holds.

    Args:
        path: the file.
        form: the program whose names it has, in words.
        families: names of the families whose layers fit; one, when it is known.
        pairs: by (part, module), names of Diffusers, alpha apart.
        facts: what genkit wrote about it; None in files of others.
        texts: all texts of the header.
    """

    path: Path
    form: str
    families: tuple[str, ...]
    pairs: dict[tuple[str, str], Pair]
    facts: Facts | None
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def record(self) -> Originals | None:
        """The names of its family's layers; None when the family is not known for sure."""
        return originals().get(self.families[0]) if len(self.families) == 1 else None

    @property
    def folded(self) -> dict[tuple[str, str], Pair]:
        """The pairs with a scale of one."""
        return {key: pair.folded() for key, pair in self.pairs.items()}


def read_lora(path: str | Path, family: str | None = None) -> Contents:
    """Read a LoRA file of any common form.

    Args:
        path: the file, or a folder with one.
        family: of the model it is for, where names fit several.

    Raises:
        UsageError: no such family.
        ArtifactError: not a whole safetensors file, no LoRA or another kind of adapter in it, halves that do not fit
            each other, weights that are no numbers, or names that fit no family or several.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = lora_file(Path(path))
    with safe_open(file, "pt") as stream:
        texts = stream.metadata() or {}
    facts = read_facts(texts, place(file))
    raw = load_file(file)
    lora = Lora(file)
    plain, _ = simplified_tensors(lora, raw)
    named = family or (facts.family if facts is not None and _known(facts.family) else None)
    tensors, families = _under_our_names(lora, plain, named)
    held = Held(plain=False)
    take(held, lora, tensors, _apart)
    finish(held, lora, texts)
    for (part, module), pair in held.pairs.items():
        pair.check_finite(f"{place(file)}: {short(f'{part}.{module}')}")
    return Contents(file, form_of(list(raw)), families, held.pairs, facts, texts)


def _known(family: str | None) -> bool:
    return family in originals()


def _under_our_names(
    lora: Lora, plain: Mapping[str, torch.Tensor], named: str | None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors under Diffusers' names and the families that these fit."""
    modules = _modules(plain)
    candidates = [originals_named(named)] if named is not None else list(originals().values())
    fitting = [record for record in candidates if all(_fits(module, record) for module in modules)]
    foreign = [key for key in plain if key.startswith(TRANSLATED)]
    if not fitting:
        if foreign:
            record = candidates[0] if named is not None else None
            unknown = next((module for module in modules if record is None or find(module, record) is None), modules[0])
            known = named or ", ".join(sorted(originals()))
            raise ArtifactError(
                f"{place(lora.path)}: the layer {short(unknown)} is none of {known}; its model is not known"
            )
        return dict(plain), () if named is None else (candidates[0].family,)
    ours = {key: value for key, value in plain.items() if key.startswith(_TEXTS)}
    rest = {key: value for key, value in plain.items() if key not in ours}
    found = [to_diffusers(rest, record).tensors | ours for record in fitting]
    if any(set(other) != set(found[0]) for other in found[1:]):
        names = ", ".join(record.family for record in fitting)
        raise ArtifactError(f"{place(lora.path)}: its names fit {names}; say which with --family")
    return found[0], tuple(record.family for record in fitting)


def _modules(plain: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules of a file, names as they are there; those of text encoders under Diffusers' names are left out."""
    found: dict[str, None] = {}
    for key in plain:
        part, _, rest = key.partition(".")
        own = part in _PARTS
        if key.startswith(_TEXTS):
            continue
        name = peft_name(part, rest) if own else key
        match = KEY.fullmatch(name)
        module = match["module"] if match else name.removesuffix(".alpha").removesuffix(".diff_b")
        module = module.partition(".lora_magnitude_vector")[0]
        found[f"{part}.{module}" if own else module] = None
    return list(found)


def _fits(module: str, record: Originals) -> bool:
    first = module.partition(".")[0]
    if first in _PARTS and first.removesuffix("_2") != record.part:
        return False
    return find(module, record) is not None


def _apart(key: str) -> tuple[str, str]:
    """Part and rest of a name; without a prefix, the denoiser."""
    first, _, rest = key.partition(".")
    if first in _PARTS:
        return first, rest
    return ("unet" if key.startswith(("down_blocks.", "up_blocks.", "mid_block.")) else "transformer"), key
