"""Optional tuning: time the Triton kernels with several tile sizes on the device at hand and keep the best in a small
file.

The table in :mod:`genkit.kernels.block_sparse.impl.triton.tile_sizes` works untuned. A tuned file is loaded on purpose
with :func:`load`, never found by accident, because another tile sums in another order and so changes the last bits of a
result.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genkit.errors import ArtifactError, UnsupportedError
from genkit.kernels.block_sparse.impl.triton import backend as triton
from genkit.kernels.block_sparse.impl.triton import tile_sizes as block_sizes
from genkit.kernels.block_sparse.impl.triton.tile_sizes import KERNELS, Tile
from genkit.kernels.plan.block_plan import BlockPlan
from genkit.reading import read_json
from genkit.reading.files import MIB, place

FORMAT = "genkit block-sparse tiles 1"
#: A tuned entry takes about a hundred bytes.
MOST_BYTES = MIB

_SIZES = ((128, 128), (128, 64), (128, 32), (64, 128), (64, 64), (64, 32), (32, 128), (32, 64), (32, 32))


def tune(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: BlockPlan,
    path: str | Path,
    *,
    measure: Callable[[object], float] | None = None,
    agrees: Callable[[Tensor, Tensor, Tensor, BlockPlan, Tile], bool] | None = None,
) -> dict[str, Tile]:
    """Time forward, dQ and dK/dV on real inputs, write the best tiles to ``path`` and use them from now on.

    Args:
        q, k, v, plan: a typical problem, as for :func:`genkit.kernels.block_sparse_attention`, without order.
        path: JSON file; entries for other devices, head sizes and dtypes in it are kept.
        measure: seconds of one launch; default: device events, best of five. A tile that fails to run does not count.
        agrees: whether a specialised tile computes what the same tile does without; default: by running both.

    Returns:
        The best tile of each kernel. Takes about a minute, most of it compilation.

    Raises:
        UnsupportedError: the Triton backend cannot run these inputs.
    """
    reason = triton.why_not(q, k, v, plan.in_order(), needs_grad=True)
    if reason:
        raise UnsupportedError(f"cannot tune the triton backend: {reason}")
    measure, agrees = measure or _seconds, agrees or _agrees
    arch = block_sizes.architecture(q.device)
    assert arch is not None, "the backend refuses devices without a row of the table"
    best: dict[str, Tile] = {}
    for kernel in KERNELS:
        times = {}
        for tile in tiles(arch, kernel, q.shape[-1], q.dtype, plan):
            try:
                if tile.specialised and not agrees(q, k, v, plan, tile):
                    warnings.warn(f"{kernel} on {arch}: {tile} computes something else; not used", stacklevel=2)
                    continue
                times[tile] = measure(triton.launch_for(kernel, q, k, v, plan.in_order(), tile))
            except (RuntimeError, ValueError):
                continue  # out of registers or shared memory on this device: not a candidate
        if not times:
            raise UnsupportedError(f"no tile size of the {kernel} kernel runs on {arch}")
        best[kernel] = min(times, key=lambda tile: times[tile])
    _write(Path(path), arch, block_sizes.width_class(q.shape[-1]), q.dtype, best)
    load(path)
    return best


def tiles(arch: str, kernel: str, dim: int, dtype: torch.dtype, plan: BlockPlan) -> list[Tile]:
    """The tiles worth timing for a plan: the table's own and all usual sizes that divide its blocks."""
    found = [block_sizes.fit(block_sizes.candidates(arch, kernel, dim, dtype), kernel, plan.block_q, plan.block_k)]
    bulk = block_sizes.bulk_candidates(arch, kernel, dim, dtype)
    found += [t for t in bulk if plan.block_q % t.queries == 0 and plan.block_k % t.keys == 0]
    for queries, keys in _SIZES:
        if plan.block_q % queries or (plan.block_k % keys and keys % plan.block_k):
            continue
        if kernel == "dkv" and plan.block_k % keys:
            continue
        for warps in (4, 8):
            found += [Tile(queries, keys, warps, stages) for stages in (1, 2, 3)]
    if kernel == "forward" and arch in block_sizes.SPECIALISES:
        held = [t for t in found if plan.block_q % t.queries == 0 and plan.block_k % t.keys == 0 and t.stages > 1]
        found += [tile._replace(specialised=True) for tile in held if tile.queries >= 64 and tile.keys >= 64]
    return list(dict.fromkeys(found))


def _agrees(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, tile: Tile) -> bool:
    """Whether a specialised forward tile computes the bits of the same tile without."""
    found = []
    for each in (tile, tile._replace(specialised=False)):
        out = torch.zeros_like(q)
        triton.on_device(q, triton.launch_for("forward", q, k, v, plan.in_order(), each, out))
        found.append(out)
    return torch.equal(*found)


def load(path: str | Path) -> int:
    """Use the tiles of a tuned file in this process; returns how many entries it holds.

    Raises:
        ArtifactError: no such file, or not one written by :func:`tune`.
    """
    entries = _read(Path(path))
    for arch, kernel, width, dtype, tile in entries:
        block_sizes.prefer(arch, kernel, width, getattr(torch, dtype), tile)
    return len(entries)


def _read(path: Path) -> list[tuple[str, str, int, str, Tile]]:
    data = read_json(path, "tuned tiles", most=MOST_BYTES, finite=True)
    try:
        if data["format"] != FORMAT:
            raise KeyError("format")
        return [
            (e["arch"], e["kernel"], int(e["width"]), e["dtype"], _tile([int(n) for n in e["tile"]]))
            for e in data["tiles"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{place(path)} is not a file of tuned tiles (format {FORMAT!r}); write one with tune()"
        ) from error


def _tile(numbers: list[int]) -> Tile:
    queries, keys, warps, stages, *specialised = numbers
    if specialised not in ([], [0], [1]):
        raise ValueError(f"a tile is four numbers and 0 or 1, got {numbers}")
    return Tile(queries, keys, warps, stages, specialised == [1])


def _write(path: Path, arch: str, width: int, dtype: torch.dtype, best: dict[str, Tile]) -> None:
    name = str(dtype).removeprefix("torch.")
    kept = {entry[:4]: entry[4] for entry in _read(path)} if path.exists() else {}
    kept |= {(arch, kernel, width, name): tile for kernel, tile in best.items()}
    rows = [
        {"arch": a, "kernel": kernel, "width": w, "dtype": d, "tile": [int(number) for number in tile]}
        for (a, kernel, w, d), tile in kept.items()
    ]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps({"format": FORMAT, "tiles": rows}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _seconds(launch) -> float:
    launch.run()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch.run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times)
