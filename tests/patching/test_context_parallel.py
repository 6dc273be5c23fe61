"""Diffusers' context parallelism under a patch: two processes on CPUs give what one gives, or say why not.

The child runs models of the real classes through ``enable_parallelism``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.patching.head_split import HeadSplit
from genkit.patching.ulysses import _build

HERE = Path(__file__).parent
SERVED = (
    "wan neighborhood",
    "wan mixture_of_block",
    "wan shifted_groups",
    "wan shards",
    "wan full",
    "flux neighborhood",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("parallel")
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    surroundings = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "parallel_child.py")]
    children = [
        subprocess.Popen([*command, str(rank), str(folder)], env=surroundings, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [child.communicate(timeout=600)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ulysses_is_served(found):
    """A method between the exchanges sees the whole sequence in the model's order, and the heads of its process."""
    for name in SERVED:
        for each in (rank[name] for rank in found):
            assert each["ran"] == each["alone"] == 3 and not each["declined"] and not each["outside"], name
            assert each["error"] < 1e-5 and each["own"] < 1e-5 and each["restored"], (name, each)
            assert name == "wan full" or each["acts"] > 0.01
            assert each["work"][0] == pytest.approx(each["work"][1])


def test_heads_of_a_schedule_are_those_of_the_model(found):
    """Two of four heads are all of the first process's and none of the second's; three are all of the second's."""
    two, three = ([rank[f"wan {count} heads"] for rank in found] for count in ("two", "three"))
    assert all(each["error"] < 1e-5 and each["acts"] > 0.01 for each in (*two, *three))
    assert [(each["ran"], each["outside"]) for each in two] == [(3, 0), (0, 3)]
    assert sum(each["work"][1] or 1.0 for each in two) / 2 == pytest.approx(two[0]["work"][0])
    assert [each["ran"] for each in three] == [3, 3]


def test_gradients_pass_the_exchanges(found):
    for rank in found:
        assert rank["gradients"]["error"] < 1e-4 * rank["gradients"]["size"]


def test_what_cannot_be_split_stays_with_the_model(found):
    """Ring attention, parts of different sizes, methods that mix heads, and queries of which a part is elsewhere."""
    reasons = {
        "wan agent": "context parallelism gives this process 2 of 4 heads, and agent",
        "wan cross": "context parallelism: 24 queries and 7 keys are not all the tokens",
        "ring": "context parallelism by ring attention leaves every process a part of the keys",
        "anything": "context parallelism with ulysses_anything has parts of different sizes",
    }
    for rank in found:
        for name, reason in reasons.items():
            (told,) = rank[name]["declined"]
            assert told.startswith(reason) and rank[name]["own"] < 1e-5
        assert rank["ring"]["same"] and rank["anything"]["same"]


def test_a_plan_of_some_heads_is_that_part_of_the_plan():
    """Also with tiles of bits, which heads have by themselves."""
    seen = torch.rand(1, 4, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.4
    seen |= torch.eye(40, dtype=torch.bool)
    plan = BlockPlan.from_mask_mod(lambda b, h, q, k: seen[0, h, q, k], 40, 40, heads=4, block_q=16, block_k=8)
    inputs = [torch.randn(1, 40, 4, 8) for _ in range(3)]
    whole, _ = block_sparse_attention(*inputs, plan)
    part, _ = block_sparse_attention(*(x[:, :, 1:3] for x in inputs), plan.for_heads(1, 2))
    torch.testing.assert_close(part, whole[:, :, 1:3])
    assert plan.for_heads(1, 2) is plan.for_heads(1, 2) and plan.for_heads(0, 4) is plan


def test_parts_of_text_and_picture_are_told_apart():
    """Six text and four picture tokens: t0 t1 t2 p0 p1 come from the first process, t3 t4 t5 p2 p3 from the second."""
    row = torch.tensor([0, 1, 2, 6, 7, 3, 4, 5, 8, 9])
    order = _build([6, 4], 2)
    assert torch.equal(order.to_raster(row[None])[0], torch.arange(10))
    assert torch.equal(order.from_raster(torch.arange(10)[None])[0], row)


@pytest.mark.parametrize(
    ("rank", "heads", "here"),
    [
        (1, None, (2, None)),
        (1, (1, 2, 3), (1, None)),
        (0, (1, 2, 3), (0, (1,))),
        (1, (0, 1), (2, ())),
        (1, (0, 3), (1, (1,))),
    ],
)
def test_numbers_of_heads_here(rank, heads, here):
    split = object.__new__(HeadSplit)
    split.rank = rank
    assert split.here(heads, 2) == here
