"""The peak of a run's memory, the size of weights before they are loaded, and the machine that measured."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import counted
from genkit.pipelines import memory
from genkit.pipelines.processor import processor_name


@dataclass
class Peak:
    """The largest amount of memory in use during a ``with``.

    Args:
        bytes: on a GPU what torch had allocated there, on a CPU the resident memory of the process; None where
            the system does not tell.
        where: ``"GPU"`` or ``"process"``.
    """

    bytes: int | None = None
    where: str = "process"


@contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Watch the peak on a device; read it when the ``with`` is left."""
    import torch

    found = Peak(where="GPU" if device.startswith("cuda") else "process")
    if found.where == "GPU":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device)
        return
    anew = memory.begin_anew()
    yield found
    found.bytes = int(memory.most_resident()) if anew else None


def weights_of(folder: Path, item: int) -> int:
    """Bytes of a model folder's weights with ``item`` bytes a number; other files of one part (``fp16``) count once."""
    total = 0
    for part in {path.parent for path in folder.rglob("*.safetensors")}:
        sizes = [path for path in part.glob("*.safetensors") if "lora" not in path.name]
        plain = [path for path in sizes if ".fp16" not in path.name and ".bf16" not in path.name] or sizes
        total += sum(_numbers(path) for path in plain) * item
    return total


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds."""
    from genkit.models.check import check_safetensors

    found: Any = check_safetensors(path)
    return sum(_product(tensor.shape) for name, tensor in found.items() if name != "__metadata__")


def _product(shape: Any) -> int:
    return math.prod(int(size) for size in shape)


def machine(device: str) -> dict[str, Any]:
    """What numbers were measured on: the GPU, or the processor with the threads that computed."""
    import torch

    if device.startswith("cuda"):
        return {"gpu": torch.cuda.get_device_name(device)}
    return {"processor": f"{processor_name()}, {torch.get_num_threads()} of {counted(os.cpu_count(), 'thread')}"}
