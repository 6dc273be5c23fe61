"""Runs many calls of a kernel at once, on torch's own threads where they can be had."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from threading import Thread

import torch
from torch import Tensor

from genkit.kernels.native.compiler import Compiled

_LINE = 64  # bytes of a cache line

# Arguments of a call, a tensor stands for the address of its first element; and what else must live until it has run.
Values = dict[str, object]


class Batch:
    """Calls of one kernel, in chains: the calls of a chain run one after the other, chains at the same time and in any
    order. What the calls refer to is kept alive until they have run.

    Attributes:
        threads: that will run them.
    """

    def __init__(self, kernel: Compiled):
        self.threads = torch.get_num_threads()
        self._kernel = kernel
        self._chains: list[list[Values]] = []

    def __len__(self) -> int:
        return len(self._chains)

    def add(self, *calls: Values) -> None:
        """Add a chain."""
        self._chains.append(list(calls))

    def run(self) -> None:
        """Run everything that was added, and forget it."""
        chains, self._chains = self._chains, []
        threads = min(self.threads, len(chains))
        if not chains:
            return
        starts = torch.tensor([0, *(len(chain) for chain in chains)]).cumsum(0)
        calls = (call for chain in chains for call in chain)
        values = torch.tensor([_number(call[name]) for call in calls for name in self._kernel.names])
        size = self._kernel.scratch_bytes
        scratch = torch.empty(threads * size + _LINE, dtype=torch.uint8)
        aligned = -(-scratch.data_ptr() // _LINE) * _LINE
        # in the order of emitter.SHARED: the next chain, the next thread's scratch memory, what there is
        shared = torch.tensor([0, 0, len(chains), starts.data_ptr(), values.data_ptr(), aligned])
        _on_threads(self._kernel.work, shared.data_ptr(), threads)


def _number(value: Tensor | int | float) -> int:
    """A value as 8 bytes."""
    if type(value) is int:
        return value
    return value.data_ptr() if isinstance(value, Tensor) else struct.unpack("<i", struct.pack("<f", value))[0]


@cache
def _openmp() -> object | None:
    """OpenMP's "run this on so many threads", of the library that torch itself uses. Threads of our own would fight
    with torch's, which go on turning for milliseconds after they have worked."""
    try:
        return ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None


def _on_threads(work: int, shared: int, threads: int) -> None:
    """Call ``work(shared)`` once in each of so many threads; Python goes on meanwhile elsewhere."""
    parallel = _openmp()
    if threads > 1 and parallel is not None:
        parallel(ctypes.c_void_p(work), ctypes.c_void_p(shared), ctypes.c_uint(threads), ctypes.c_uint(0))
        return
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
    others = [Thread(target=function, args=(shared,)) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    function(shared)
    for thread in others:
        thread.join()
