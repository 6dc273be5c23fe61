"""Whole models in one file, as A1111, ComfyUI and the models' authors keep them: ``--model FILE.safetensors``.

The file has weights and no configurations. These, and parts that the file does not hold, come from a Diffusers folder.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UsageError, counted, said
from genkit.models.check import check_folder, check_safetensors, parts_of, read_index
from genkit.models.registry import locate
from genkit.pipelines.checkpoint_names import (
    BESIDE,
    DENOISERS,
    PREFIXES,
    alone,
    check_kind,
    usual_model,
    without_values,
)
from genkit.pipelines.hub import fetch_files
from genkit.pipelines.kept import by_own_names, kept_names, restore, rules_of
from genkit.pipelines.parts import class_named, empty_part, errors_only
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

FLAG = "--parts-from"
#: Files of a model of the hub that hold no weights.
_CONFIGURATIONS = ("*.json", "*/*.json", "*.txt", "*/*.txt", "*/*.model")
#: Text encoders in whole files: the beginning of their names, and whether names are those of OpenCLIP.
_CLIPS = (
    ("cond_stage_model.transformer.", False),
    ("conditioner.embedders.0.transformer.", False),
    ("text_encoders.clip_l.transformer.", False),
    ("text_encoders.clip_g.transformer.", False),
    ("cond_stage_model.model.", True),
    ("conditioner.embedders.1.model.", True),
    ("conditioner.embedders.0.model.", True),
)
_T5 = "text_encoders.t5xxl.transformer."
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds several parts of a model.

    Args:
        path: of the file.
        folder: Diffusers folder with all configurations, and the weights of the parts that the file does not hold.
        origin: what ``folder`` is to the user.
        parts: those whose weights the file holds, by (library, class).
        left: optional parts that neither of both holds; the pipeline runs without them.
    """

    path: Path
    folder: Path
    origin: str
    parts: dict[str, tuple[str, str]]
    left: tuple[str, ...] = ()

    def load(self, dtype: torch.dtype, without: Container[str] = ()) -> dict[str, Any]:
        """The parts of the file with their weights, and None for those that are left out.

        Args:
            dtype: of the weights.
            without: parts that come from elsewhere.

        Raises:
            ArtifactError: what Diffusers says about the file.
        """
        from diffusers.loaders.single_file_utils import load_single_file_checkpoint

        found: dict[str, Any] = dict.fromkeys(self.left)
        try:
            with errors_only():
                tensors = load_single_file_checkpoint(str(self.path), local_files_only=True)
                found |= {part: self._part(part, tensors, dtype) for part in self.parts if part not in without}
        except Exception as error:  # whatever a class says about files that it was not made for
            raise ArtifactError(f"model {place(self.path)} cannot be loaded: {said(error)}") from error
        return found

    def _part(self, part: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
        from diffusers import pipelines
        from diffusers.loaders.single_file import load_single_file_sub_model

        library, name = self.parts[part]
        made = load_single_file_sub_model(
            library, name, part, dict(tensors), pipelines, hasattr(pipelines, library), str(self.folder),
            local_files_only=True, torch_dtype=dtype,
        )  # fmt: skip
        if kept_names(type(made), dtype) is not None:
            restore(made, _own(self.folder, part, type(made), tensors) or {}, dtype)
        if hasattr(made, "tie_weights"):
            made.tie_weights()  # the file has a tied tensor once
        return made

    def told(self) -> str:
        """What comes from where, one line."""
        beside = ", ".join(part for part in parts_of(read_index(self.folder)) if part not in (*self.parts, *self.left))
        lacks = f"; without {', '.join(self.left)}, whose weights neither holds" if self.left else ""
        return f"{self.path.name} holds {', '.join(self.parts)}; {beside} come from {self.origin}{lacks}"


def find_checkpoint(path: Path, parts_from: str | None = None) -> Checkpoint:
    """A whole model in one file, checked without reading its weights.

    Args:
        path: of the file.
        parts_from: a Diffusers folder, shipped name or hub id with the configurations; None = the model of the hub
            that Diffusers takes for files of this kind.

    Raises:
        UsageError: a file of another kind; the message says what it is and how it is given.
        ArtifactError: a broken file, one that does not belong to the configurations, or weights that are nowhere.
    """
    if path.suffix != ".safetensors":
        raise UsageError(_other_format(path))
    tensors = without_values(check_safetensors(path))
    check_kind(path, tensors)
    usual = usual_model(tensors)
    if parts_from is None:
        if alone(tensors):
            known = f", as {usual} has it," if usual else ""
            raise UsageError(
                f"model {place(path)} holds a denoiser{known} and nothing else: give the model's folder as --model and "
                f"the file as --denoiser {path.name}, or the folder as {FLAG}"
            )
        if usual is None:
            raise UsageError(
                f"model {place(path)} is of no kind that Diffusers knows by its names; give a Diffusers folder or hub "
                f"id with its configurations: {FLAG} FOLDER"
            )
    origin = parts_from or usual
    assert origin is not None, "refused above"
    folder, hub = _folder(path, origin, parts_from is None)
    held = _held(folder, tensors)
    if not any(part in held for part in DENOISERS):
        raise ArtifactError(
            f"model {place(path)}: {origin} is a {read_index(folder)['_class_name']}, and the file has no denoiser for "
            f"it{_looks(usual)}; give {FLAG} the folder of a model of the file's kind"
        )
    for part, (kind, found) in held.items():
        _check_fits(path, origin, usual, part, kind, found, folder)
    lacking = _lacking(folder, held, hub)
    check_folder(folder, without=(*held, *lacking))
    index = read_index(folder)
    optional = getattr(class_named("diffusers", index["_class_name"]), "_optional_components", ())
    missing = [part for part in lacking if part not in optional]
    if missing:
        raise ArtifactError(
            f"model {place(path)} holds {', '.join(held)}, and {' and '.join(missing)} neither; {origin} has no "
            f"weights of it: give {FLAG} a folder that has"
        )
    return Checkpoint(path, folder, origin, {part: tuple(index[part]) for part in held}, tuple(lacking))


def _other_format(path: Path) -> str:
    if path.suffix == ".gguf":
        return f"model {place(path)} holds a denoiser alone: give the model's folder as --model, the file as --denoiser"
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return (
            f"model {place(path)} is a pickle, which can run code when loaded; genkit loads .safetensors only, "
            "convert it first"
        )
    return f"model {place(path)} is a file; genkit loads Diffusers folders (with model_index.json) and .safetensors"


def _looks(usual: str | None) -> str:
    return f" (it looks like {usual})" if usual else ""


def _folder(path: Path, origin: str, guessed: bool) -> tuple[Path, str | None]:
    """The folder of configurations, and the hub id that it belongs to."""
    location = locate(origin, FLAG)
    if location.path is not None:
        return location.path, None
    try:
        return fetch_files(location, _CONFIGURATIONS), origin
    except ArtifactError as error:
        if not guessed:
            raise
        raise ArtifactError(
            f"model {place(path)} looks like {origin}, whose configurations are needed: {said(error)}; or give a "
            f"Diffusers folder of such a model, {FLAG} FOLDER"
        ) from error


def _held(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
    """The parts that a file holds: class, and tensors by the names that Diffusers gives them."""
    found = {}
    index = read_index(folder)
    for part in parts_of(index):
        kind = class_named(*index[part])
        try:
            own = None if kind is None else _own(folder, part, kind, tensors)
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError):  # names that its class does not have
            own = {}
        if own is not None:
            found[part] = (kind, own)
    return found


def _own(folder: Path, part: str, kind: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """A part's tensors by Diffusers' names; None when the file has none for it."""
    if kind.__module__.startswith("transformers"):
        return _text_encoder(folder, part, kind, tensors)
    bare = part in DENOISERS and alone(tensors)
    if rules_of(kind) is None or not (bare or any(name.startswith(PREFIXES.get(part, ())) for name in tensors)):
        return None
    if bare and empty_part(folder, part, kind).state_dict().keys() == tensors.keys():
        return dict(tensors)
    return by_own_names(folder, part, kind, tensors)


def _text_encoder(folder: Path, part: str, kind: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """The same of a text encoder, which is told from others in the file by its width."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    if kind.__name__ == "T5EncoderModel":
        return _below(_T5, tensors) or None
    if kind.__name__ not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        return None
    model = empty_part(folder, part, kind)
    for prefix, open_clip in _CLIPS:
        inner = "positional_embedding" if open_clip else "text_model.embeddings.position_embedding.weight"
        positions = tensors.get(f"{prefix}{inner}")
        if positions is None or positions.shape[-1] != model.config.hidden_size:
            continue
        found = convert_open_clip_checkpoint(model, tensors, prefix) if open_clip else _below(prefix, tensors)
        if not hasattr(model, "text_model"):
            found = {name.removeprefix("text_model."): value for name, value in found.items()}
        projection = f"{prefix}text_projection.weight"
        if prefix.startswith("text_encoders.clip_l") and projection not in tensors and "text_projection" in dir(model):
            found["text_projection.weight"] = model.text_projection.weight  # Diffusers puts an identity there
        return found
    return None


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_fits(
    path: Path, origin: str, usual: str | None, part: str, kind: Any, found: dict[str, torch.Tensor], folder: Path
) -> None:
    """Refuse weights of another model than the configuration describes: names, shapes and numbers of layers."""
    model = empty_part(folder, part, kind)
    wanted = model.state_dict()
    tied = getattr(model, "_tied_weights_keys", None) or ()
    missing = [name for name in wanted if name not in found and name not in tied]
    other = next((name for name in wanted if name in found and found[name].shape != wanted[name].shape), None)
    # Some of Diffusers' functions hand on what belongs to other parts.
    extra = [
        name for name in found if name not in wanted and _LAYER.search(name) and not name.startswith(BESIDE)
    ]  # fmt: skip
    if missing:
        why = f"has nothing for {counted(len(missing), 'tensor')} of it, the first is {missing[0]}"
    elif other is not None:
        why = f"has {list(found[other].shape)} for {other}, where the configuration says {list(wanted[other].shape)}"
    elif extra and not kind.__module__.startswith("transformers"):
        why = f"has {counted(len(extra), 'tensor')} that it has no place for, the first is {extra[0]}"
    else:
        return
    raise ArtifactError(
        f"model {place(path)} does not belong to the configurations of {origin}: for {part} ({kind.__name__}) it "
        f"{why}{_looks(usual)}; give {FLAG} the folder of a model of the file's kind"
    )


def _lacking(folder: Path, held: Container[str], hub: str | None) -> list[str]:
    """The parts whose weights are nowhere; those of a model of the hub are fetched."""
    from torch import nn

    index = read_index(folder)
    kinds = {part: class_named(*index[part]) for part in parts_of(index) if part not in held}
    networks = [part for part, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    lacking = [part for part in networks if not any((folder / part).glob("*.safetensors"))]
    if hub is None or not lacking:
        return lacking
    optional = getattr(class_named("diffusers", index["_class_name"]), "_optional_components", ())
    needed = [part for part in lacking if part not in optional]
    if needed:
        fetch_files(locate(hub, FLAG), tuple(f"{part}/*.safetensors*" for part in needed))
    return [part for part in lacking if not any((folder / part).glob("*.safetensors"))]
