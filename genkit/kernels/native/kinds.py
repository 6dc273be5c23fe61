"""Which native kernels run: the switch ``GENKIT_CPU_KERNELS``, and what is best where it does not say.

=============  ========================================================================================================
``auto``       the emitted kernels where they run; else the C++ ones for the processor's widest vectors; else torch's
``avx512``     the C++ kernels with vectors of 512 bits
``avx2``       the C++ kernels with vectors of 256 bits
``portable``   the C++ kernels with vectors of 128 bits and no options: SSE2 on x86-64, NEON on ARM
``emitted``    the kernels that Python writes for LLVM, on Linux: AMX for bfloat16 where it can be had, else AVX-512
``torch``      torch's own kernel
=============  ========================================================================================================
"""

from __future__ import annotations

import os
import warnings
from functools import cache

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.kernels.native import compiler, library

SWITCH = "GENKIT_CPU_KERNELS"
NAMES = ("auto", *library.KINDS, "emitted", "torch")
TILES, VECTORS = "tiles", "vectors"  # the emitted kinds
CHANNELS = {TILES: 32}  # a head is padded to a multiple; to 16 for all others


def wanted() -> str:
    """What the switch asks for.

    Raises:
        UsageError: it holds no known name.
    """
    name = os.environ.get(SWITCH) or "auto"
    if name not in NAMES:
        raise UsageError(explain(f"the environment variable {SWITCH}", name, NAMES))
    return name


def kind_for(dtype: torch.dtype, dim: int) -> str:
    """The kind of kernels that runs heads of ``dim`` channels: ``"tiles"``, ``"vectors"``, or one of
    ``library.KINDS``.

    Raises:
        UnsupportedError: none does; the message says why. UsageError: the switch holds an unknown name.
    """
    name = wanted()
    if with_tiles(dtype):
        return TILES
    found, reason = _choice(name, -(-dim // 16) * 16)
    if found is not None:
        return found
    if name in ("auto", "torch"):
        raise NoKernel(reason)
    raise UnsupportedError(f"{SWITCH}={name} asks for kernels that cannot run here: {reason}")


def with_tiles(dtype: torch.dtype) -> bool:
    """Whether these numbers are multiplied in AMX tiles."""
    return dtype == torch.bfloat16 and wanted() in ("auto", "emitted") and compiler.why_not(TILES) is None


class NoKernel(UnsupportedError):
    """No native kernel runs, and none was asked for by name: torch's kernel takes over."""


def _choice(name: str, dim: int) -> tuple[str | None, str]:
    if name == "torch":
        return None, f"{SWITCH}=torch asks for torch's kernel"
    emitted = compiler.why_not(VECTORS)
    if name in ("auto", "emitted") and emitted is None:
        return VECTORS, ""
    if name == "emitted":
        return None, str(emitted)
    best = next(kind for kind in library.KINDS if library.processor_why_not(kind) is None)
    kind = best if name == "auto" else name
    made = library.load(kind, dim)
    if not isinstance(made, str):
        return kind, ""
    if name == "auto":
        _say_once(made)
    return None, made


@cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"attention on the CPU runs in torch's kernel, several times slower than genkit's own: {reason}. "
        f"pip install ziglang brings a compiler; {SWITCH}=torch ends this message.",
        stacklevel=2,
    )


def report(dtype: torch.dtype, dim: int = 64) -> str:
    """In words, what runs attention over blocks of keys on the CPU, or why it is torch's kernel."""
    try:
        kind = kind_for(dtype, dim)
    except NoKernel as error:
        return f"torch's kernel: {error}"
    except UnsupportedError as error:
        return f"nothing: {error}"
    if kind == TILES:
        return "emitted kernels with AMX"
    if kind == VECTORS:
        return "emitted kernels with AVX-512"
    vectors = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "vectors of 128 bits"}[kind]
    return f"C++ kernels with {vectors}"
