"""LoRA files as users name them: ``file[@strength][:part]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from genkit.errors import ArtifactError, UsageError
from genkit.lora.keys import check_names
from genkit.models.check import check_safetensors
from genkit.reading.files import place
from genkit.reading.strength import STRENGTH, path_and_strength, strength_text

NAMED = "pytorch_lora_weights.safetensors"
#: What the file of a router says it is, see :mod:`genkit.lora.mixture.files`.
ROUTER_FORMAT = "genkit-lora-router"
#: Strengths that make pictures; sliders go up to about 10.
STRONGEST = 100
_PART = re.compile(r"(.+):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Lora:
    """A LoRA as a user names it: ``file[@strength][:part]``.

    Args:
        path: the safetensors file.
        strength: factor of its change.
        part: the part of the pipeline that it goes to; None for all that it is made for.
    """

    path: Path
    strength: float = 1.0
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.path.resolve()}{STRENGTH}{strength_text(self.strength)}{f':{self.part}' if self.part else ''}"


def parse_lora(text: str) -> Lora:
    """``"folder/or/file[@strength][:part]"``, read and checked as far as it can be without a model.

    Raises:
        UsageError: the strength is no number, or beyond :data:`STRONGEST`.
        ArtifactError: nothing there, not a whole safetensors file, or no LoRA in it.
    """
    found = _PART.fullmatch(text)
    part = found.group(2) if found and not Path(text).exists() else None
    path, strength = path_and_strength(found.group(1) if found and part else text, "--lora", -STRONGEST, STRONGEST)
    return Lora(lora_file(path), strength, part)


def lora_file(path: Path) -> Path:
    """The LoRA file that a path means: itself, or the one in a folder, checked as far as its header tells.

    Raises:
        ArtifactError: nothing there, not a whole safetensors file, or no LoRA in it.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ArtifactError(f"LoRA folder {place(path)} has no .safetensors file")
        named = [file for file in files if file.name == NAMED]
        if not named and len(files) > 1:
            raise ArtifactError(f"LoRA folder {place(path)} has {len(files)} .safetensors files; name one of them")
        path = (named or files)[0]
    if not path.exists():
        raise ArtifactError(f"LoRA {place(path)} does not exist")
    header = check_safetensors(path)
    if (header.get("__metadata__") or {}).get("format") == ROUTER_FORMAT:
        raise UsageError(f"LoRA {place(path)} is a router over LoRAs; genkit generate takes it with --lora-router")
    check_names(path, [name for name in header if name != "__metadata__"])
    return path
