"""The Triton backend without a GPU: parity in the interpreter (own process), refusals, and the tile table."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from interpreter import run_checks

from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, block_sparse_attention, why_not
from genkit.kernels.block_sparse.impl.triton import tile_sizes as block_sizes
from genkit.kernels.block_sparse.impl.triton.tile_sizes import SHARED_KIB, Tile, candidates, fit


def test_kernels_equal_brute_force_in_the_interpreter():
    assert run_checks(Path(__file__).with_name("triton_checks.py")) == 64


def test_int8_scores_equal_brute_force_on_the_rounded_inputs():
    assert run_checks(Path(__file__).with_name("triton_int8_checks.py")) == 13


def test_without_a_device_it_says_why_not():
    q = torch.zeros(1, 8, 1, 16)
    plan = BlockPlan.dense(8, 8)
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "needs a CUDA or HIP device" in why_not("triton", q, q, q, plan)
    with pytest.raises(UnsupportedError, match="CUDA or HIP"):
        block_sparse_attention(q, q, q, plan, backend="triton")


@pytest.mark.parametrize("arch", [*SHARED_KIB, "interpreter"])
@pytest.mark.parametrize("kernel", block_sizes.KERNELS)
@pytest.mark.parametrize("dim", [40, 64, 80, 128, 160, 256])
def test_every_tile_suits_the_matrix_units_and_fits_its_block(arch, kernel, dim):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        options = candidates(arch, kernel, dim, dtype)
        assert options
        for block_q, block_k in ((128, 128), (64, 64), (256, 64), (64, 16), (96, 48), (7, 5), (16, 8)):
            tile = fit(options, kernel, block_q, block_k)
            assert tile.queries >= 16 and tile.keys >= 16
            assert tile.queries & (tile.queries - 1) == 0 and tile.keys & (tile.keys - 1) == 0
            assert tile.queries < 2 * max(block_q, 16)
            if kernel == "dkv":
                assert tile.keys < 2 * max(block_k, 16)


def test_small_key_blocks_are_packed_and_large_blocks_split():
    options = (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))
    assert fit(options, "forward", 128, 16)[:2] == (128, 64)
    assert fit(options, "dkv", 128, 16)[:2] == (64, 16)
    assert fit(options, "forward", 64, 64) == Tile(64, 64, 4, 2)
    assert fit(options, "forward", 256, 256)[:2] == (128, 64)
    assert fit(options, "forward", 96, 48)[:2] == (32, 32)


def test_architectures_of_devices(monkeypatch):
    found = {}
    for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, value=capability: value)
        block_sizes._architecture.cache_clear()
        found[capability] = block_sizes.architecture(torch.device("cuda", 0))
    block_sizes._architecture.cache_clear()
    assert found == {
        (7, 5): None, (8, 0): "sm_80", (8, 6): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90", (10, 0): "sm_100",
        (10, 3): "sm_100", (12, 0): "sm_120", (12, 1): "sm_120",
    }  # fmt: skip
    assert block_sizes.architecture(torch.device("cpu")) == "interpreter"


def test_calls_that_need_more_registers_have_rows_of_their_own(monkeypatch):
    monkeypatch.setattr(block_sizes, "architecture", lambda device: "sm_80")
    ask = ("dkv", 64, torch.bfloat16, torch.device("cpu"), 128, 128)
    found = [block_sizes.choose_tile(*ask, **how) for how in ({"plain": True}, {}, {"heavy": True})]
    assert found[0].queries * found[0].keys > found[1].queries * found[1].keys and found[2].stages == 1
    measured = Tile(128, 128, 8, 2)
    block_sizes.prefer("sm_80", "dkv", 64, torch.bfloat16, measured)
    assert block_sizes.choose_tile(*ask) == measured and block_sizes.choose_tile(*ask, heavy=True) == found[2]
    block_sizes.prefer("sm_80", "dkv", 64, torch.bfloat16, None)


def test_every_row_of_the_table_is_some_calls(monkeypatch):
    flags = [
        dict(zip(("plain", "heavy", "bits", "quadratic"), x, strict=True)) for x in product((False, True), repeat=4)
    ]
    possible = [f for f in flags if f["heavy"] >= f["quadratic"] and not (f["heavy"] and f["bits"])]
    for arch, sizes in block_sizes._TABLE.items():
        for row, columns in sizes.items():
            for column in columns:
                mark = Tile(64, 64, 2, 7)
                monkeypatch.setitem(sizes, row, columns | {column: (mark,)})
                asked = product((40, 64, 72, 80, 96, 128, 160, 192, 256), possible)
                kernel = row.partition(",")[0]
                found = [block_sizes.candidates(arch, kernel, dim, torch.bfloat16, **how) for dim, how in asked]
                monkeypatch.setitem(sizes, row, columns)
                assert (mark,) in found, f"{arch}: no call asks for {row!r} of {column} channels"


def test_the_copy_engine_has_tiles_of_its_own_for_blocks_that_hold_them_whole(monkeypatch):
    monkeypatch.setattr(block_sizes, "architecture", lambda device: "sm_90")
    ask = ("forward", 128, torch.bfloat16, torch.device("cpu"))
    assert block_sizes.choose_tile(*ask, 128, 128, bulk=True)[:2] == (128, 128)
    assert block_sizes.choose_tile(*ask, 128, 64, bulk=True)[:2] == (128, 64)
    assert block_sizes.choose_tile(*ask, 128, 16, bulk=True) == block_sizes.choose_tile(*ask, 128, 16)
    assert block_sizes.choose_tile(*ask, 96, 48, bulk=True)[:2] == (32, 32)
    assert not block_sizes.bulk_candidates("sm_90", "forward", 128, torch.float32)
    assert not block_sizes.bulk_candidates("sm_80", "forward", 128, torch.bfloat16)


def test_a_measured_tile_goes_first():
    tile = Tile(32, 32, 2, 1)
    before = block_sizes.choose_tile("forward", 64, torch.float32, torch.device("cpu"), 64, 64)
    block_sizes.prefer("interpreter", "forward", 64, torch.float32, tile)
    assert block_sizes.choose_tile("forward", 64, torch.float32, torch.device("cpu"), 64, 64) == tile
    block_sizes.prefer("interpreter", "forward", 64, torch.float32, None)
    assert block_sizes.choose_tile("forward", 64, torch.float32, torch.device("cpu"), 64, 64) == before
