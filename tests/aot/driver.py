"""A driver that only names a target, so that the real launch path compiles without a device, and what a binary uses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")


class StandIn:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend(name: str) -> None:
    """Make every launch in this process compile for ``name`` (one target per process: a bad one may abort it)."""
    if name.startswith("gfx"):
        target = GPUTarget("hip", name, 64)
    else:
        target = GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    triton.runtime.driver.set_active(StandIn(target))


class Usage(NamedTuple):
    """Registers per thread, spilled (bytes of stack on NVIDIA, registers on AMD), shared memory in bytes."""

    registers: int
    spilled: int
    shared: int


def usage(compiled) -> Usage:
    """Read off a compiled kernel what a device would report on loading it."""
    if "cubin" in compiled.asm:
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        return Usage(
            int(re.search(r"REG:(\d+)", told)[1]), int(re.search(r"STACK:(\d+)", told)[1]), compiled.metadata.shared
        )

    def number(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s*(\d+)", compiled.asm["amdgcn"])[-1])

    return Usage(number("vgpr_count"), number("vgpr_spill_count"), compiled.metadata.shared)
