"""Encoded samples and captions on disk, under a key of everything that matters: an old entry is never met by mistake.

An entry is one safetensors file, named after the SHA-256 of its key: the content of the file or the caption, the cut,
the autoencoder or text encoders (configuration and every weight), the type stored. Changed files, captions and models
therefore have other entries; old ones are found by :meth:`Cache.stale` and may be deleted at any time. Files appear
whole or not at all, so several processes may fill one cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, escaped, shortened
from genkit.media.atomic import Files
from genkit.models.tensors import write_tensors
from genkit.reading import parse_json
from genkit.reading.files import place

Tensors = dict[str, torch.Tensor]
_KEY, _HELD = "genkit_key", "genkit_tensors"
#: Types as safetensors names them.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Cache:
    """A folder of entries.

    Args:
        folder: made when the first entry is written.
    """

    folder: Path

    def get(self, key: Mapping[str, Any], make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a key, from the disk where they are, else made and written.

        Args:
            key: plain values that say all that the tensors depend on.
            make: called when there is no entry.

        Raises:
            ArtifactError: the entry cannot be read, is another key's, or cannot be written.
        """
        path = self.path_of(key)
        if path.is_file():
            return self._read(path, key)
        made = {name: value.detach().contiguous().cpu() for name, value in make().items()}
        self._write(path, key, made)
        return made

    def holds(self, key: Mapping[str, Any]) -> bool:
        """Whether there is an entry."""
        return self.path_of(key).is_file()

    def damage(self, key: Mapping[str, Any]) -> str | None:
        """Why an entry that is there cannot be read; None where it can, or where there is none. Its head is read, not
        its numbers."""
        if self.holds(key):
            try:
                _head(self.path_of(key), key)
            except ArtifactError as error:
                return str(error)
        return None

    def keys(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The entries that can be read, and their keys."""
        for path in sorted(self.folder.glob("*/*.safetensors")):
            with suppress(ArtifactError):
                yield path, _head(path)

    def path_of(self, key: Mapping[str, Any]) -> Path:
        """Where the entry of a key lies."""
        name = hashlib.sha256(_text(key).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def stale(self, keys: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Entries that belong to none of the keys of a run."""
        wanted = {self.path_of(key) for key in keys}
        return sorted(path for path in self.folder.glob("*/*.safetensors") if path not in wanted)

    @staticmethod
    def _write(path: Path, key: Mapping[str, Any], tensors: Tensors) -> None:
        with Files() as files:
            held = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
            write_tensors(files.new(path), tensors, {_KEY: _text(key), _HELD: _text(held)})

    @staticmethod
    def _read(path: Path, key: Mapping[str, Any]) -> Tensors:
        with _opened(path) as file:
            _check_head(file, path, key)
            # Copies: what safetensors gives lies in the file, and the process would end if that were cut off later.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        said = shortened(escaped(str(error)))
        raise ArtifactError(f"{place(path)} is no readable entry of a cache ({said}); delete it") from error


def _head(path: Path, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The key that an entry says it belongs to.

    Raises:
        ArtifactError: the file cannot be read, is none of a cache, or belongs to another key than ``wanted``.
    """
    with _opened(path) as file:
        told = _check_head(file, path, wanted)
    key = parse_json(told, f"the key in {place(path)}")
    if not isinstance(key, dict):
        raise ArtifactError(f"{place(path)} is not the entry that its name says; delete it")
    return key


def _check_head(file: Any, path: Path, wanted: Mapping[str, Any] | None) -> str:
    """The text of the key in an opened entry, whose tensors must be those that were written under it."""
    texts = file.metadata() or {}
    told, held = texts.get(_KEY), texts.get(_HELD)
    if told is None or (wanted is not None and told != _text(wanted)):
        raise ArtifactError(f"{place(path)} is not the entry that its name says; delete it")
    found = {}
    for name in file.keys():  # noqa: SIM118 - no mapping
        part = file.get_slice(name)
        found[name] = [str(_DTYPES.get(part.get_dtype(), part.get_dtype())), list(part.get_shape())]
    if held != _text(found):
        raise ArtifactError(f"{place(path)} holds other tensors than were written under its key; delete it")
    return told


def fingerprint(*modules: nn.Module | None) -> str:
    """SHA-256 of the configurations and all weights of networks, whatever device they are on; a second per gigabyte.

    Args:
        modules: None stands for a part that a pipeline does not have.
    """
    digest = hashlib.sha256()
    for module in modules:
        if module is None:
            digest.update(b"none")
            continue
        config: Any = getattr(module, "config", None)
        told = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
        # Where it was loaded from and by which version says nothing about what it computes.
        kept = {name: value for name, value in told.items() if not name.startswith("_") and "version" not in name}
        digest.update(f"{type(module).__name__} {_text(kept)}".encode())
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, ensure_ascii=True, default=str)
