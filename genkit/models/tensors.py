"""Writing safetensors files: the same tensors and texts give the same bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend on its content alone.

    The library writes the texts of the header in another order in every process; here they are sorted.

    Args:
        path: the file, replaced if there; give a temporary name of :class:`genkit.media.atomic.Files`.
        tensors: by name; they may share memory or be views.
        metadata: texts by name. Texts with a wall-clock time would change the bytes from run to run.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart = {name: value.detach().to("cpu").contiguous().clone() for name, value in tensors.items()}
    try:
        save_file(apart, path, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        first = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items()))}
        text = json.dumps(first | header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise OSError(f"the header of {path.name} grew from {length} to {len(text)} bytes")
        stream.seek(8)
        stream.write(text.ljust(length))
