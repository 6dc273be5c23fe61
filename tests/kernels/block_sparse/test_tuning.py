"""Tuning writes the best tiles, keeps other entries, and a loaded file steers the choice."""

from __future__ import annotations

import json

import pytest
import torch

from genkit.errors import ArtifactError, UnsupportedError
from genkit.kernels import BlockPlan, Rule
from genkit.kernels.block_sparse import tuning
from genkit.kernels.block_sparse.impl.triton import backend as triton
from genkit.kernels.block_sparse.impl.triton import tile_sizes as block_sizes
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile, choose_tile


@pytest.fixture
def pretend_device(monkeypatch):
    """Let the backend accept CPU tensors; nothing is run, only launches are built."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton, "why_not", lambda *inputs, **options: None)
    yield
    for kernel in block_sizes.KERNELS:
        block_sizes.prefer("interpreter", kernel, 64, torch.float32, None)


def test_the_fastest_tile_is_written_and_used(pretend_device, tmp_path):
    q = torch.zeros(1, 256, 2, 64)
    plan = BlockPlan.from_rule(Rule.causal(256), block_q=128, block_k=64)
    best = Tile(64, 32, 8, 2)

    def measure(launch):
        shape = launch.constants["SHAPE"]
        tile = (shape.TILE_Q, shape.TILE_K, launch.options["num_warps"])
        if tile[0] == 128:
            raise RuntimeError("out of resource")
        return 1.0 if tile == best[:3] and launch.options["num_stages"] == best.stages else 2.0

    path = tmp_path / "tiles.json"
    assert set(tuning.tune(q, q, q, plan, path, measure=measure).values()) == {best}
    assert choose_tile("dkv", 64, torch.float32, q.device, 128, 64) == best
    other = json.loads(path.read_text())
    other["tiles"].append({"arch": "sm_90", "kernel": "dq", "width": 128, "dtype": "bfloat16", "tile": [64, 64, 4, 2]})
    path.write_text(json.dumps(other))
    tuning.tune(q, q, q, plan, path, measure=lambda launch: launch.constants["SHAPE"].TILE_Q)
    assert tuning.load(path) == 4
    block_sizes.prefer("sm_90", "dq", 128, torch.bfloat16, None)


def test_every_candidate_divides_the_blocks_of_the_plan():
    plan = BlockPlan.dense(512, 512, block_q=128, block_k=64)
    for kernel in block_sizes.KERNELS:
        found = tuning.tiles("sm_90", kernel, 128, torch.bfloat16, plan)
        assert len(found) > 10 and len(set(found)) == len(found)
        assert all(128 % tile.queries == 0 and (64 % tile.keys == 0 or tile.keys % 64 == 0) for tile in found)


def test_nothing_that_runs_and_no_device_are_told(pretend_device, tmp_path, monkeypatch):
    q, plan = torch.zeros(1, 64, 1, 64), BlockPlan.dense(64, 64)

    def fail(launch):
        raise RuntimeError("out of resource")

    with pytest.raises(UnsupportedError, match="no tile size of the forward kernel"):
        tuning.tune(q, q, q, plan, tmp_path / "tiles.json", measure=fail)
    monkeypatch.setattr(triton, "why_not", lambda *inputs, **options: "no device")
    with pytest.raises(UnsupportedError, match="no device"):
        tuning.tune(q, q, q, plan, tmp_path / "tiles.json")


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read"):
        tuning.load(tmp_path / "none.json")
    for number, text in enumerate(("not json", "{}", '{"format": "other", "tiles": []}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ArtifactError, match="no valid JSON|not a file of tuned tiles"):
            tuning.load(path)


def test_specialised_tiles_are_tried_where_there_are_any_and_taken_when_they_agree(
    pretend_device, tmp_path, monkeypatch
):
    q = torch.zeros(1, 256, 2, 64)
    plan = BlockPlan.dense(256, 256, block_q=128, block_k=64)
    found = tuning.tiles("sm_100", "forward", 128, torch.bfloat16, plan)
    special = [tile for tile in found if tile.specialised]
    assert special and all(tile._replace(specialised=False) in found for tile in special)
    assert not any(t.specialised for k in ("dq", "dkv") for t in tuning.tiles("sm_100", k, 128, torch.bfloat16, plan))
    assert not any(t.specialised for t in tuning.tiles("sm_90", "forward", 128, torch.bfloat16, plan))

    def measure(launch):
        return 1.0 if launch.constants["SHAPE"].SPECIALISED else 2.0

    monkeypatch.setattr(block_sizes, "SPECIALISES", {"interpreter"})
    path = tmp_path / "tiles.json"
    best = tuning.tune(q, q, q, plan, path, measure=measure, agrees=lambda *_: True)
    assert best["forward"].specialised and not best["dq"].specialised
    assert choose_tile("forward", 64, torch.float32, q.device, 128, 64) == best["forward"]
    with pytest.warns(UserWarning, match="computes something else"):
        best = tuning.tune(q, q, q, plan, path, measure=measure, agrees=lambda *_: False)
    assert not best["forward"].specialised
