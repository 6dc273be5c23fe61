"""Says which native kernels this machine runs, and compiles them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from llvmlite import ir

_TRIPLE = "x86_64-unknown-linux-gnu"
# Code is made for the first processor with what a kind of kernel needs; nothing that later ones add is used.
_PROCESSORS = {"vectors": "skylake-avx512", "tiles": "sapphirerapids"}
_VECTOR_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


@cache
def why_not(kind: str) -> str | None:
    """Why this machine cannot run kernels with ``"vectors"`` (AVX-512) or ``"tiles"`` (AMX, bfloat16), or None. Asks
    the system for the tiles on the first call."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"they are made for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if find_spec("llvmlite") is None:
        return "the llvmlite package is not installed"
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    missing = [name for name in _VECTOR_FEATURES if not features.get(name)]
    if missing:
        return f"the processor has no {', '.join(missing)}"
    return _why_no_tiles() if kind == "tiles" else None


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 in tiles (asked of torch; a torch that cannot tell counts as no)."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask and ask())


def _why_no_tiles() -> str | None:
    if not has_amx():
        return "the processor has no AMX, as far as torch can tell"
    return None if torch.cpu._init_amx() else "the system does not let this process use AMX"


@dataclass(frozen=True)
class Compiled:
    """A kernel in memory.

    Args:
        names: of its arguments. scratch_bytes: of memory that a thread needs to run it.
        work: address of the loop that runs it, see ``batch``.
    """

    names: tuple[str, ...]
    scratch_bytes: int
    work: int
    engine: object  # owns the code


def assembled(module: ir.Module, kind: str) -> tuple[object, object]:
    """Module and target machine, for processors that run kernels of a kind, whatever this one is."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    # vectors of 512 bits, which LLVM avoids otherwise; its passes over the code gain nothing here and take a second
    target = binding.Target.from_triple(_TRIPLE)
    machine = target.create_target_machine(cpu=_PROCESSORS[kind], features="-prefer-256-bit", opt=2, jit=True)
    parsed = binding.parse_assembly(str(module))
    parsed.triple, parsed.data_layout = _TRIPLE, str(machine.target_data)
    parsed.verify()
    return parsed, machine


def compiled(module: ir.Module, kind: str, names: tuple[str, ...], scratch_bytes: int) -> Compiled:
    """Compile a finished module.

    Raises:
        RuntimeError: this machine cannot run it; ask :func:`why_not` first.
    """
    reason = why_not(kind)
    if reason is not None:
        raise RuntimeError(f"native kernels with {kind} cannot run here: {reason}")
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(*assembled(module, kind))
    engine.finalize_object()
    return Compiled(names, scratch_bytes, engine.get_function_address("work"), engine)
