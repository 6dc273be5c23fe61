"""The processor of this machine: its name and what it can do, as the system tells."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

_TOLD = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The name its maker gave it; where the system does not tell, that of its kind, such as ``x86_64``."""
    return _told("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Its instruction sets by the system's names; empty where the system does not tell."""
    return set((_told("flags") or _told("Features") or "").split())


def _told(name: str) -> str | None:
    with suppress(OSError):
        for line in _TOLD.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
