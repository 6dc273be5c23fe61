"""Timing, memory and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 10, warm: int = 3) -> float:
    """Median seconds of a call, with the level-2 cache flushed in between on a GPU."""
    for _ in range(warm):
        function()
    times = []
    if device.type != "cuda":
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


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
