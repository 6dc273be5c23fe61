"""The weights of a Diffusers folder, file by file: nothing is loaded into a model, and one file is held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import ArtifactError
from genkit.models.check import check_folder, check_safetensors, parts_of
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

#: Parts that a LoRA can change.
_TAKE_LORA = ("transformer", "unet", "prior", "text_encoder", "connectors")


@dataclass(frozen=True)
class PartWeights:
    """The weights of one part of a pipeline folder.

    Args:
        name: of the part.
        folder: where they lie.
        files: tensor -> its file.
        shapes: tensor -> its shape.
    """

    name: str
    folder: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]

    def key_of(self, module: str, field: str = "weight") -> str | None:
        """The tensor of a module's weight or bias; None for one that is not there.

        transformers writes the layers of CLIP below ``text_model``, in memory they may lie beside it.
        """
        for name in (
            f"{module}.{field}",
            f"text_model.{module}.{field}",
            f"{module.removeprefix('text_model.')}.{field}",
        ):
            if name in self.files:
                return name
        return None

    def read(self, key: str) -> torch.Tensor:
        """One tensor."""
        from safetensors import safe_open

        with safe_open(self.files[key], "pt") as stream:
            return stream.get_tensor(key)

    def by_file(self) -> Iterator[tuple[Path, list[str]]]:
        """Every file with its tensors."""
        for path in dict.fromkeys(self.files.values()):
            yield path, [key for key, file in self.files.items() if file == path]


def weights_of(folder: Path) -> dict[str, PartWeights]:
    """The parts of a pipeline folder that a LoRA can change, by name.

    Raises:
        ArtifactError: no whole pipeline folder, or weights of the same name in two files.
    """
    found = {}
    for part in parts_of(check_folder(folder)):
        if not part.startswith(_TAKE_LORA):
            continue
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(folder / part):
            for key, tensor in check_safetensors(path).items():
                if key == "__metadata__":
                    continue
                if key in files:
                    raise ArtifactError(
                        f"{place(folder / part)} holds {key} in two files: {files[key].name}, {path.name}"
                    )
                files[key], shapes[key] = path, tuple(tensor.shape)
        found[part] = PartWeights(part, folder / part, files, shapes)
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files that are loaded without a variant: ``model.fp16.safetensors`` beside ``model.safetensors`` is none."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [path for path in files if path.name.count(".") == 1]
    return plain or files
