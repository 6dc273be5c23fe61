"""A LoRA in another program's form, and what every tool here writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import UnsupportedError, UsageError
from genkit.families.originals.lookup import originals
from genkit.lora.contents import Contents
from genkit.lora.facts import Facts, adapter_metadata, metadata_of
from genkit.lora.info import source_of
from genkit.lora.keys import short
from genkit.lora.merge import Made
from genkit.lora.names import DIFFUSERS, from_diffusers
from genkit.lora.pair import Pair
from genkit.lora.save import peft_tensors, write_lora
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch


def convert(found: Contents, to: str, output: Path, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA under another program's names; what it changes stays the same.

    Args:
        found: the LoRA.
        to: one of :data:`genkit.lora.names.FORMS`.
        output: the file.
        dtype: of the weights; as they are when None.

    Raises:
        UnsupportedError: a layer without a name there, or a family that is not known.
        ArtifactError: not written.
    """
    facts = found.facts or unknown_facts(found, "convert")
    kept = {key: value for key, value in found.texts.items() if key.startswith(("ss_", "modelspec."))}
    write(output, found.folded, to, found.families, facts, dtype, kept)


def write(
    output: Path,
    pairs: Mapping[tuple[str, str], Pair],
    form: str,
    families: tuple[str, ...],
    facts: Facts,
    dtype: torch.dtype | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write pairs with a scale of one in a form; see :func:`convert`.

    Args:
        families: whose names the layers may have; more than one is fine where they agree.
        texts: of the header, which go before those made of the facts.
    """
    if dtype is not None:
        pairs = {key: pair.to(dtype) for key, pair in pairs.items()}
        for (part, module), pair in pairs.items():
            pair.check_finite(f"{short(f'{part}.{module}')} in {str(dtype).removeprefix('torch.')}")
    if form == DIFFUSERS:
        metadata = metadata_of(facts, adapter_metadata(pairs))
        write_lora(output, peft_tensors(pairs), metadata | dict(texts or {}))
        return
    if not families:
        raise UnsupportedError(
            f"the family of the model is not known, so its layers have no names in {form} files; "
            "say it with --family: "
            f"{', '.join(sorted(originals()))}"
        )
    two = any(part == "text_encoder_2" for part, _ in pairs) or families[0] != "UNet2DCondition"
    made = {name: from_diffusers(pairs, form, originals()[name], two) for name in families}
    first = next(iter(made.values()))
    if any(set(other) != set(first) for other in made.values()):
        raise UsageError(f"its layers fit {', '.join(families)}, whose names differ; say which with --family")
    write_lora(output, first, metadata_of(facts, None) | dict(texts or {}))


def made_of(found: Contents, made_by: str) -> Made:
    """A LoRA as it is, as the beginning of another."""
    facts = found.facts.replace(made_by=made_by) if found.facts is not None else unknown_facts(found, made_by)
    return Made(found.folded, found.families, facts.replace(sources=[source_of(found.path)]))


def unknown_facts(found: Contents, made_by: str) -> Facts:
    """What can be said of a file that genkit did not train: how it was trained is not known."""
    ranks = {pair.rank for pair in found.pairs.values()}
    return Facts(
        made_by=made_by,
        family=found.families[0] if len(found.families) == 1 else None,
        rank=ranks.pop() if len(ranks) == 1 else None,
        attention_known=False,
        sources=[source_of(found.path)],
    )


def check_output(output: Path, inputs: list[Path], force: bool) -> None:
    """Refuse to write over what is read, and over anything else unless ``force``.

    Raises:
        UsageError: it is one of the inputs, exists, or is no name of a safetensors file.
        ArtifactError: the folder cannot be written.
    """
    from genkit.media.atomic import check_writable

    if output.suffix != ".safetensors":
        raise UsageError(f"--output: got {place(output)}, allowed: a name that ends in .safetensors")
    if any(output.resolve() == path.resolve() for path in inputs):
        raise UsageError(f"--output {place(output)} is one of the files that are read; choose another name")
    if output.is_dir():
        raise UsageError(f"--output {place(output)} is a folder; give a file in it")
    if output.exists() and not force:
        raise UsageError(f"--output {place(output)} exists; add --force to replace it")
    check_writable(output.parent)
