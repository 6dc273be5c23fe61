"""Words that were learned beside a LoRA: a file for each, which stock Diffusers' ``load_textual_inversion`` reads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UsageError, said, shown
from genkit.lora.facts import Facts
from genkit.media.atomic import Files
from genkit.models.check import check_safetensors
from genkit.models.tensors import write_tensors
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

#: Folder beside the LoRA that holds them.
WORDS = "words"
_PART = re.compile(r"text_encoder(_\d)?")


def name_of(word: str) -> str:
    """Name of a word's file."""
    return f"{re.sub(r'[^0-9a-z]+', '-', word.lower()).strip('-') or 'word'}.safetensors"


def save_words(folder: Path, embeddings: Mapping[str, torch.Tensor]) -> None:
    """Write ``FOLDER/words``, a file for every word with its embedding (width,) under the word's name."""
    with Files() as files:
        for word, embedding in embeddings.items():
            write_tensors(files.new(folder / WORDS / name_of(word)), {word: embedding}, {"format": "pt"})


def word_files(lora: Path, facts: Facts | None) -> dict[str, Path]:
    """The files of the words that a LoRA says were learned beside it, checked as far as their headers tell.

    Raises:
        ArtifactError: a file that is not there or holds another word.
    """
    found = {}
    for word, part in (facts.words if facts is not None else {}).items():
        path = lora.parent / WORDS / name_of(word)
        if not path.is_file():
            raise ArtifactError(
                f"{place(lora)} was trained with the word {shown(word)}, whose embedding {place(path)} is not there; "
                f"keep the folder {WORDS} beside the LoRA"
            )
        names = [name for name in check_safetensors(path) if name != "__metadata__"]
        if names != [word] or not _PART.fullmatch(part):
            raise ArtifactError(f"{place(path)} is not the embedding of {shown(word)} that {place(lora)} tells of")
        found[word] = path
    return found


def words_of(files: Sequence[tuple[Path, Facts | None]]) -> dict[str, str]:
    """The words of several LoRAs with their text encoders, for one file that is made of them.

    Raises:
        ArtifactError: two of them bring one word.
    """
    found: dict[str, str] = {}
    for path, facts in files:
        for word, part in ({} if facts is None else facts.words).items():
            if word in found:
                raise ArtifactError(f"{place(path)} brings the word {shown(word)}, as another of the files does")
            found[word] = part
    return found


def copy_words(files: Sequence[tuple[Path, Facts | None]], output: Path) -> None:
    """Put the words of LoRAs beside a file that is made of them.

    Raises:
        ArtifactError: a word's file that is not there.
    """
    with Files() as pending:
        for path, facts in files:
            for source in word_files(path, facts).values():
                target = output.parent / WORDS / source.name
                if target.resolve() != source.resolve():
                    shutil.copyfile(source, pending.new(target))


def load_words(pipeline: Any, lora: Path, facts: Facts | None) -> None:
    """Give a pipeline the words of a LoRA, for good: taking the LoRA out leaves them.

    Raises:
        ArtifactError: a file that is not there or does not fit the text encoder.
        UsageError: a word that the pipeline knows from elsewhere.
    """
    from safetensors.torch import load_file

    for word, path in word_files(lora, facts).items():
        part = facts.words[word] if facts is not None else ""
        tokenizer, encoder = tokenizer_of(pipeline, part), getattr(pipeline, part, None)
        if tokenizer is None or encoder is None:
            raise ArtifactError(f"{place(lora)}: {type(pipeline).__name__} has no {part}, whose word {shown(word)} is")
        if word in tokenizer.get_vocab():
            raise UsageError(
                f"{place(lora)} brings the word {shown(word)}, which the model knows already; two LoRAs with "
                "one word do not go together"
            )
        try:
            pipeline.load_textual_inversion(load_file(path), tokenizer=tokenizer, text_encoder=encoder)
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{place(path)} does not fit {type(pipeline).__name__}: {said(error)}") from error


def tokenizer_of(pipeline: Any, part: str) -> Any:
    """The tokenizer of a text encoder, by the encoder's name; None where there is none."""
    return getattr(pipeline, part.replace("text_encoder", "tokenizer"), None)
