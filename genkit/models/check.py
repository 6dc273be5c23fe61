"""Is a Diffusers folder whole? Every part present, every safetensors file readable; told before anything heavy is
loaded."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from genkit.errors import ArtifactError, shown
from genkit.reading import open_file, parse_json, read_json
from genkit.reading.files import called, place, reason
from genkit.schema import Rule, open_keys, read

INDEX = "model_index.json"
MAX_HEADER = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
CONFIGS = (
    "config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json",
    "processor_config.json", "generation_config.json", "special_tokens_map.json", "guider_config.json",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


#: Parts are folders beside the index; nothing else may be named there.
PART = re.compile(r"[A-Za-z_]\w*")


@open_keys
@dataclass(frozen=True)
class Tensor:
    """One tensor in the header of a safetensors file: its type, shape, and first and last byte."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]

    @property
    def end(self) -> int:
        """The byte after its last one; ValueError when the numbers contradict each other."""
        if len(self.data_offsets) != 2 or not 0 <= self.data_offsets[0] <= self.data_offsets[1]:
            raise ValueError(f"offsets {shown(self.data_offsets)}")
        start, stop = self.data_offsets
        bits = BITS.get(self.dtype)
        if min(self.shape, default=0) < 0 or (bits is not None and (stop - start) * 8 != prod(self.shape) * bits):
            raise ValueError(f"{shown(self.dtype)} {shown(self.shape)} does not fit {stop - start} bytes")
        return stop


def check_safetensors(path: Path, what: str = "") -> dict[str, Any]:
    """Read and check the header of a safetensors file: its length, its JSON, every tensor's place and size, the
    file's size. ``what`` it is to the user, for messages: ``"--ip-adapter"``.

    Returns:
        The header: tensor name -> :class:`Tensor`, and ``"__metadata__"``, texts by name, when the file has it.

    Raises:
        ArtifactError: missing, empty, truncated or corrupt file; the message names the file.
    """
    name = called(path, what)
    with open_file(path, what) as stream:
        try:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, max(0, size - 8)):
                raise ArtifactError(
                    f"{name} is no readable safetensors file (truncated or corrupt header); get the file again"
                )
            text = stream.read(length).decode("utf-8")
        except OSError as error:
            raise ArtifactError(f"cannot read {name}: {reason(error)}") from error
        except UnicodeDecodeError as error:
            raise ArtifactError(
                f"{name} is no readable safetensors file (corrupt header); get the file again"
            ) from error
    header_of = f"{name} is no readable safetensors file; its header"
    raw = read(dict[str, Any], parse_json(text, header_of), header_of, ArtifactError)
    header = {}
    for key, value in raw.items():
        kind = dict[str, str] if key == "__metadata__" else Tensor
        header[key] = read(kind, value, f"{header_of}, {shown(key)}", ArtifactError)
    try:
        end = max((tensor.end for key, tensor in header.items() if key != "__metadata__"), default=0)
    except ValueError as error:
        raise ArtifactError(f"{header_of} contradicts itself ({error}); get the file again") from error
    expected = 8 + length + end
    if size != expected:
        state = "truncated" if size < expected else "too long"
        told = expected if expected < 1 << 60 else "far more"
        raise ArtifactError(f"{name} is {state}: {size} bytes, its header promises {told}; get the file again")
    return header


def check_folder(folder: Path, without: Container[str] = ()) -> dict:
    """Check a Diffusers pipeline folder and return its ``model_index.json``.

    Args:
        folder: to check.
        without: parts whose weights are elsewhere; only their configurations are looked for.

    Raises:
        ArtifactError: no or unreadable index, a part without its folder, configuration or weights, weights that are
        no whole
            safetensors file. The message names the file.
    """
    index_path = folder / INDEX
    if not index_path.is_file():
        single = (folder / "config.json").is_file()
        hint = (
            "it looks like one part of a pipeline; give the folder above it"
            if single
            else "it is no Diffusers pipeline folder"
        )
        raise ArtifactError(f"{folder} has no {INDEX}: {hint}")
    index = read_index(folder)
    for part, class_name in parts_of(index).items():
        _check_part(folder, part, class_name, part not in without)
    return index


def read_index(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline folder: the class of the pipeline, ``[library, class]`` per part, and
    values of the pipeline itself.

    Raises:
        ArtifactError: missing or unreadable, no class named, or a part that is none.
    """
    path = folder / INDEX
    index = read(dict[str, Any], read_json(path), place(path), ArtifactError)
    if not isinstance(index.get("_class_name"), str):
        raise ArtifactError(f"{place(path)} does not name a pipeline (_class_name); get the file again")
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or not value or isinstance(value[0], (int, float)):
            continue
        library_and_class = len(value) == 2 and all(each is None or isinstance(each, str) for each in value)
        if not library_and_class or not PART.fullmatch(part):
            raise ArtifactError(
                f"{place(path)}: got {shown(part)}: {shown(value)}, allowed: the name of a part with [library, class]; "
                "get the file again"
            )
    return index


def parts_of(index: dict[str, Any]) -> dict[str, str]:
    """The parts that an index lists with the names of their classes, without those that are left out (null)."""
    found = {name: value[1] for name, value in index.items() if not name.startswith("_") and _is_part(value)}
    return {name: class_name for name, class_name in found.items() if class_name is not None}


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(each is None or isinstance(each, str) for each in value)


def read_part_config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    """The configuration of a part of a pipeline folder; empty when it has none.

    Raises:
        ArtifactError: unreadable, or no object of names and values.
    """
    path = folder / part / name
    return read(dict[str, Any], read_json(path), place(path), ArtifactError) if path.is_file() else {}


@open_keys
@dataclass(frozen=True)
class _Shards:
    """The index of weights that are split into several files."""

    weight_map: dict[str, Annotated[str, Rule(most=255)]]


def _check_part(folder: Path, part: str, class_name: str, weights: bool) -> None:
    home = folder / part
    if not home.is_dir() or not any(home.iterdir()):
        raise ArtifactError(
            f"{folder} has no part {part!r} ({class_name}), which {INDEX} lists; the folder is incomplete"
        )
    for path in sorted(home.glob("*.json")):
        content = read_json(path)
        if path.name in CONFIGS:
            read(dict[str, Any], content, place(path), ArtifactError)
    if "Scheduler" in class_name:
        _need(home, "scheduler_config.json", class_name)
    elif class_name.endswith("Guidance"):
        _need(home, "guider_config.json", class_name)
    elif "Token" in class_name:
        _need(home, "tokenizer_config.json", class_name)
    elif class_name.endswith(("Processor", "ProcessorPil", "ProcessorFast", "FeatureExtractor")):
        if not any((home / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            _need(home, "preprocessor_config.json", class_name)
    else:
        _need(home, "config.json", class_name)
        if weights:
            _check_weights(home, class_name)


def _need(home: Path, name: str, class_name: str) -> None:
    if not (home / name).is_file():
        raise ArtifactError(f"{home / name} is missing ({class_name} needs it); the folder is incomplete")


def _check_weights(home: Path, class_name: str) -> None:
    files = sorted(home.glob("*.safetensors"))
    for listing in sorted(home.glob("*.safetensors.index.json")):
        shards = set(read(_Shards, read_json(listing), place(listing), ArtifactError).weight_map.values())
        missing = sorted(shards - {path.name for path in files})
        if missing:
            raise ArtifactError(
                f"{home / missing[0]} is missing, which {listing.name} lists; the folder is incomplete"
            )
    if not files:
        pickles = sorted(path for pattern in PICKLES for path in home.glob(pattern))
        if pickles:
            raise ArtifactError(
                f"{pickles[0]} is a pickle, which can run code when loaded; "
                "genkit loads .safetensors only, convert it first"
            )
        raise ArtifactError(f"{home} has no weights (*.safetensors) for {class_name}; the folder is incomplete")
    for path in files:
        check_safetensors(path)


#: Folder of a model's own few-step LoRA: beside the model, no part of it.
FAST = "fast"


def fingerprint(folder: Path, *files: Path) -> str:
    """A short digest that changes when a model folder changes: names, sizes, configurations, and of each large file its
    first and last mebibyte. Fast for folders of any size; not a proof of integrity (``SHA256SUMS`` is).

    Args:
        folder: of the model.
        files: of weights that lie elsewhere; their names do not matter.
    """
    digest = hashlib.sha256()
    edge = 1 << 20
    named = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name, path in [*named, *(("", file) for file in files)]:
        if path.suffix not in (".json", ".safetensors", ".txt", ".model") or name.split("/")[0] == FAST:
            continue
        size = path.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(edge))
            if size > edge:
                stream.seek(max(edge, size - edge))
                digest.update(stream.read(edge))
    return digest.hexdigest()[:16]
