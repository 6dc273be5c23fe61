"""Memory of a run: the peak while it goes on, and an estimate before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    with suppress(OSError):
        _RESET.write_text("5")  # the high-water mark begins anew
    yield found
    found.bytes = _resident("VmHWM")


def _resident(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith(name)), "")
        return int(line.split()[1]) * 1024
    return None


def free(device: str) -> int | None:
    """Bytes that can still be used on a device; None where the system does not tell."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


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
    total = 1
    for size in shape:
        total *= int(size)
    return total


def shown(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def machine(device: str) -> dict[str, Any]:
    """What numbers were measured on: the GPU, or the processor with the threads that computed."""
    import platform

    import torch

    if device.startswith("cuda"):
        return {"gpu": torch.cuda.get_device_name(device)}
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"processor": f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"}
