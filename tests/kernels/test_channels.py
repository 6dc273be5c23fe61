"""How kernels take heads apart."""

from __future__ import annotations

import pytest
import torch

from genkit.kernels.block_sparse.impl.triton import launch, tile_sizes
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile
from genkit.kernels.channels import head_parts, one_part, padded
from genkit.kernels.token_select.impl.triton.backend import parts_of


@pytest.mark.parametrize("dim", range(1, 257))
def test_parts_hold_the_head_with_least_to_spare(dim):
    parts = head_parts(dim)
    widths = [width for _, width in parts]
    assert all(width >= 16 and width & (width - 1) == 0 for width in widths) and sorted(widths, reverse=True) == widths
    assert [start for start, _ in parts] == [sum(widths[:i]) for i in range(len(widths))]
    possible = [a + b for a in (16, 32, 64, 128, 256) for b in (0, 16, 32, 64, 128) if b < a]
    assert sum(widths) == min(size for size in possible if size >= dim) and len(parts) <= 2
    assert one_part(dim) == ((0, padded(dim)),) and padded(dim) >= sum(widths)


def test_the_sizes_of_known_models():
    found = {dim: tuple(width for _, width in head_parts(dim)) for dim in (40, 64, 72, 80, 96, 112, 128, 160, 192, 256)}
    assert found == {
        40: (32, 16), 64: (64,), 72: (64, 16), 80: (64, 16), 96: (64, 32), 112: (128,), 128: (128,), 160: (128, 32),
        192: (128, 64), 256: (256,),
    }  # fmt: skip


def test_where_parts_cost_more_than_empty_lanes_there_is_one():
    assert tile_sizes.parts_on("sm_90", 40) == one_part(40) and tile_sizes.parts_on("sm_80", 40) == head_parts(40)
    assert tile_sizes.parts_on("sm_90", 80) == head_parts(80) == parts_of(80)
    assert tile_sizes.parts_on("sm_90", 80, heavy=True) == one_part(80)
    assert (
        parts_of(96) == one_part(96)
        and parts_of(160) == one_part(160)
        and tile_sizes.parts_on("sm_90", 160) == head_parts(160)
    )
    assert [dim for dim in (128, 160, 161, 256) if tile_sizes.apart(dim)] == [161, 256]


def test_keys_that_cannot_be_copied_asynchronously_are_not_pipelined_on_sm_100():
    tile = Tile(128, 64, 8, 3)
    assert tile_sizes.unpipelined(tile, "sm_100", "forward", aligned=False) == tile._replace(stages=1)
    for arch, kernel, aligned in (("sm_90", "forward", False), ("sm_100", "dq", False), ("sm_100", "forward", True)):
        assert tile_sizes.unpipelined(tile, arch, kernel, aligned) == tile
    sizes = {}
    for dim in (40, 72, 80):
        q = torch.zeros(2, 8, 3, dim, dtype=torch.bfloat16)
        sizes[dim] = launch.Inputs.of(q, q, q, parts=head_parts(dim)).aligned
    assert sizes == {40: False, 72: False, 80: True}


@pytest.mark.parametrize("dim", [144, 160, 192, 256])
def test_wide_heads_on_sm_90_get_tiles_that_its_matrix_unit_takes(dim):
    for kernel in tile_sizes.KERNELS:
        tiles = tile_sizes.bulk_candidates("sm_90", kernel, dim, torch.bfloat16)
        rows = [tile.keys if kernel == "dkv" else tile.queries for tile in tiles]
        # 64 rows at a time, by four warps
        assert tiles and all(n % 64 == 0 and n // 16 == tile.warps for n, tile in zip(rows, tiles, strict=True))
