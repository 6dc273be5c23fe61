"""Is a Diffusers folder whole? Every part present, every safetensors file readable; told before anything heavy is
loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from math import prod
from pathlib import Path

from genkit.errors import ArtifactError

INDEX = "model_index.json"
MAX_HEADER = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_safetensors(path: Path) -> dict:
    """Read and check the header of a safetensors file: its length, its JSON, every tensor's place and size, the
    file's size.

    Returns:
        The header: tensor name -> ``{"dtype", "shape", "data_offsets"}``, and ``"__metadata__"``.

    Raises:
        ArtifactError: missing, empty, truncated or corrupt file; the message names the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, max(0, size - 8)):
                raise ArtifactError(
                    f"{path} is no readable safetensors file (truncated or corrupt header); get the file again"
                )
            header = json.loads(stream.read(length).decode("utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file (corrupt header); get the file again") from error
    try:
        end = max((_tensor_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is no readable safetensors file (header: {error}); get the file again") from error
    expected = 8 + length + end
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise ArtifactError(f"{path} is {state}: {size} bytes, its header promises {expected}; get the file again")
    return header


def _tensor_end(entry: dict) -> int:
    start, stop = entry["data_offsets"]
    bits = BITS.get(entry["dtype"])
    if not 0 <= start <= stop:
        raise ValueError(f"offsets {start}, {stop}")
    if bits is not None and (stop - start) * 8 != prod(entry["shape"]) * bits:
        raise ValueError(f"{entry['dtype']} {entry['shape']} does not fit {stop - start} bytes")
    return stop


def check_folder(folder: Path) -> dict:
    """Check a Diffusers pipeline folder and return its ``model_index.json``.

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
    index = _read_json(index_path)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ArtifactError(f"{index_path} does not name a pipeline (_class_name); get the file again")
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        _check_part(folder, part, str(value[1]))
    return index


def _check_part(folder: Path, part: str, class_name: str) -> None:
    place = folder / part
    if not place.is_dir() or not any(place.iterdir()):
        raise ArtifactError(
            f"{folder} has no part {part!r} ({class_name}), which {INDEX} lists; the folder is incomplete"
        )
    for path in sorted(place.glob("*.json")):
        _read_json(path)
    if "Scheduler" in class_name:
        _need(place, "scheduler_config.json", class_name)
    elif "Token" in class_name:
        _need(place, "tokenizer_config.json", class_name)
    elif class_name.endswith(("Processor", "FeatureExtractor")):
        if not any((place / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            _need(place, "preprocessor_config.json", class_name)
    else:
        _need(place, "config.json", class_name)
        _check_weights(place, class_name)


def _need(place: Path, name: str, class_name: str) -> None:
    if not (place / name).is_file():
        raise ArtifactError(f"{place / name} is missing ({class_name} needs it); the folder is incomplete")


def _check_weights(place: Path, class_name: str) -> None:
    files = sorted(place.glob("*.safetensors"))
    for listing in sorted(place.glob("*.safetensors.index.json")):
        shards = set(_read_json(listing).get("weight_map", {}).values())
        missing = sorted(shards - {path.name for path in files})
        if missing:
            raise ArtifactError(
                f"{place / missing[0]} is missing, which {listing.name} lists; the folder is incomplete"
            )
    if not files:
        pickles = sorted(path for pattern in PICKLES for path in place.glob(pattern))
        if pickles:
            raise ArtifactError(
                f"{pickles[0]} is a pickle, which can run code when loaded; "
                "genkit loads .safetensors only, convert it first"
            )
        raise ArtifactError(f"{place} has no weights (*.safetensors) for {class_name}; the folder is incomplete")
    for path in files:
        check_safetensors(path)


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def fingerprint(folder: Path) -> str:
    """A short digest that changes when a model folder changes: names, sizes, configurations, and of each large file its
    first and last mebibyte. Fast for folders of any size; not a proof of integrity (``SHA256SUMS`` is)."""
    digest = hashlib.sha256()
    edge = 1 << 20
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix not in (".json", ".safetensors", ".txt", ".model"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(edge))
            if size > edge:
                stream.seek(max(edge, size - edge))
                digest.update(stream.read(edge))
    return digest.hexdigest()[:16]
