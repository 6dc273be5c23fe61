"""Memory of this process and of its device: what is used, what is free, and how bytes are told."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _FREE, _RESET = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/proc/self/clear_refs")


def resident() -> float:
    """Bytes of main memory that this process has now."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    except OSError:
        return most_resident()


def most_resident() -> float:
    """The most bytes of main memory that this process has had, since :func:`begin_anew` where that succeeded."""
    peak = _kilobytes(_STATUS, "VmHWM:")
    if peak is not None:
        return 1024.0 * peak
    # Linux's getrusage begins with what the process had that started this one, so it comes second.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def begin_anew() -> bool:
    """Forget the most that this process has had; False where the system cannot."""
    with suppress(OSError):
        _RESET.write_text("5")
        return True
    return False


def free(device: str) -> float | None:
    """Bytes that can still be used on a device such as ``"cpu"``; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    found = _kilobytes(_FREE, "MemAvailable:")
    if found is not None:
        return 1024.0 * found
    with suppress(ValueError, OSError, AttributeError):
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return None


def size(count: float) -> str:
    """Bytes as people say it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _kilobytes(path: Path, name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        line = next((line for line in path.read_text().splitlines() if line.startswith(name)), "")
        return int(line.split()[1])
    return None
