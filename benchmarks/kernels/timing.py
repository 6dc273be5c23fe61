"""Timing, memory and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(
    function: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3, limit: float = 3.0
) -> float:
    """Median seconds of a call, with the level-2 cache flushed in between on a GPU.

    Args:
        repeats, warm: measured calls, and calls before them.
        limit: seconds after which no further call is made, for warming and for measuring each; at least one warm call
            (if any) and three measured ones (or ``repeats``) are made.
    """
    start = time.perf_counter()
    for _ in range(warm):
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if time.perf_counter() - start > limit:
            break
    once = _once_on_gpu(device) if device.type == "cuda" else _once
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() - start < limit):
        times.append(once(function))
    return statistics.median(times)


def _once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _once_on_gpu(device: torch.device) -> Callable[[Callable[[], object]], float]:
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)

    def once(function: Callable[[], object]) -> float:
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return once


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Most memory a call adds, in bytes; None where the device does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def roofline(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Best matrix rate (TFLOP/s, a large square product) and copy rate (GB/s) measured here."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matrix = 2 * side**3 / seconds(lambda: a @ b, device) / 1e12
    source = torch.empty(1 << (30 if device.type == "cuda" else 26), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds(lambda: target.copy_(source), device) / 1e9
    return {"matrix TFLOP/s": round(matrix, 2), "copy GB/s": round(copy, 1)}
