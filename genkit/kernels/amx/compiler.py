"""Says whether this machine runs AMX kernels, and compiles them."""

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
_PROCESSOR = "sapphirerapids"  # the first with AMX; what later ones add is not used


@cache
def why_not() -> str | None:
    """Why this machine cannot run AMX kernels, or None. Asks the system for the tiles on the first call."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"AMX is used on Linux for x86-64, this is {platform.system()} on {platform.machine()}"
    ask, start = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_init_amx"))
    if ask is None or start is None:
        return f"torch {torch.__version__} does not tell whether the processor has AMX"
    if not ask():
        return "the processor has no AMX"
    if find_spec("llvmlite") is None:
        return "the llvmlite package is not installed"
    return None if start() else "the system does not let this process use AMX"


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


def assembled(module: ir.Module) -> tuple[object, object]:
    """Module and target machine, for processors with AMX whatever this machine is."""
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    # vectors of 512 bits, which LLVM avoids otherwise; its passes over the code gain nothing here and take a second
    target = binding.Target.from_triple(_TRIPLE)
    machine = target.create_target_machine(cpu=_PROCESSOR, features="-prefer-256-bit", opt=2, jit=True)
    parsed = binding.parse_assembly(str(module))
    parsed.triple, parsed.data_layout = _TRIPLE, str(machine.target_data)
    parsed.verify()
    return parsed, machine


def compiled(module: ir.Module, names: tuple[str, ...], scratch_bytes: int) -> Compiled:
    """Compile a finished module.

    Raises:
        RuntimeError: this machine cannot run it; ask :func:`why_not` first.
    """
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"no AMX kernel can run here: {reason}")
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(*assembled(module))
    engine.finalize_object()
    return Compiled(names, scratch_bytes, engine.get_function_address("work"), engine)
