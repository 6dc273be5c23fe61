"""Weights of a denoiser in one file, as other programs keep them: ``--denoiser``. The rest comes from the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain, said
from genkit.models.check import check_safetensors
from genkit.pipelines.checkpoint_names import PREFIXES, check_unscaled
from genkit.pipelines.kept import by_own_names, kept_names, restore
from genkit.pipelines.quantise import GGUF, folders_only
from genkit.reading import file_digest, regular, user_path
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

    from genkit.pipelines.model import Model

_NAMED = re.compile(r"(\w+)=(.+)", re.DOTALL)
_GGUF = ".gguf"


@dataclass(frozen=True)
class SingleFile:
    """One file.

    Args:
        part: of the model whose weights it holds.
        kind: class of the part.
        path: of the file.
    """

    part: str
    kind: Any
    path: Path

    def load(self, model: Model, dtype: torch.dtype) -> Any:
        """The part with the file's weights and the model's configuration; names of other programs are translated by
        Diffusers."""
        more: dict[str, Any] = {}
        source: Any = str(self.path)
        kept = None if self.path.suffix == _GGUF else kept_names(self.kind, dtype)  # Diffusers keeps those of .gguf
        if self.path.suffix == _GGUF:
            from diffusers import GGUFQuantizationConfig

            more["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        try:
            if kept is not None:
                from diffusers.loaders.single_file_utils import load_single_file_checkpoint

                source = load_single_file_checkpoint(source, local_files_only=True)
            tensors = None if kept is None else dict(source)
            made = self.kind.from_single_file(
                source, config=str(model.folder), subfolder=self.part, dtype=dtype, local_files_only=True, **more
            )
            if tensors is not None:
                if made.state_dict().keys() != tensors.keys():
                    tensors = by_own_names(model.folder, self.part, self.kind, tensors)
                restore(made, tensors, dtype)
        except Exception as error:  # whatever a class says about files that it was not made for
            raise ArtifactError(
                f"--denoiser {place(self.path)} does not suit {self.kind.__name__} of {model.name}: {said(error)}"
            ) from error
        return made

    @property
    def text(self) -> str:
        """As it means the same from any folder."""
        return f"{self.part}={self.path.resolve()}"


def find_files(texts: Sequence[str], model: Model, quantize: str | None) -> tuple[SingleFile, ...]:
    """The files that ``[PART=]FILE`` name, checked without reading weights.

    Raises:
        UsageError: an unknown or repeated part, a file of another kind. ArtifactError: a broken file, or one with fewer
            weights than the part has. UnsupportedError: a class or format that cannot be read here.
    """
    found: list[SingleFile] = []
    parts = list(model.outline.components) if texts else []
    for text in texts:
        named = _NAMED.fullmatch(text)
        part, name = named.groups() if named else (parts[0] if parts else "", text)
        if part not in parts:
            raise UsageError(explain("--denoiser", part, parts))
        if any(each.part == part for each in found):
            raise UsageError(f"--denoiser: {part} is given twice; write PART=FILE for {', '.join(parts)}")
        path = regular(user_path(name, "--denoiser"), "--denoiser")
        kind: Any = model.part_class(part)
        if not hasattr(kind, "from_single_file"):
            raise UnsupportedError(f"--denoiser: Diffusers reads no single files for {kind.__name__}")
        if folders_only(quantize):
            raise UsageError(
                f"--denoiser with --quantize {quantize}: only folders are read that way; take fp8, or neither"
            )
        if path.suffix == _GGUF and quantize not in (None, GGUF):
            raise UsageError(f"--denoiser {place(path)} is in fewer bits already; leave out --quantize {quantize}")
        _check(path, part, model)
        found.append(SingleFile(part, kind, path))
    return tuple(found)


def _check(path: Path, part: str, model: Model) -> None:
    if path.suffix == _GGUF:
        if find_spec("gguf") is None:
            raise UnsupportedError(f"--denoiser {path.name} needs the package gguf, which is missing: install gguf")
        return
    if path.suffix != ".safetensors":
        raise UsageError(f"--denoiser {place(path)}: only .safetensors and .gguf files are read")
    tensors = {name: each for name, each in check_safetensors(path).items() if name != "__metadata__"}
    check_unscaled(f"--denoiser {path.name}", tensors)
    own = {name: each for name, each in tensors.items() if name.startswith(PREFIXES["unet"])} or tensors
    has = sum(prod(each.shape) for each in own.values())
    wants = sum(each.numel() for each in model.outline.components[part].state_dict().values())
    if has < wants:
        raise ArtifactError(
            f"--denoiser {path.name} has {has:,} weights, and {part} of {model.name} {wants:,}: it is for another model"
        )


def fingerprints(files: Sequence[SingleFile]) -> dict[str, Any]:
    """Digests, for the record."""
    return {"denoiser_fingerprints": [file_digest(each.path)[:16] for each in files]} if files else {}
