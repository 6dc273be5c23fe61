"""The GPU benchmark's own code, run small on the CPU so that it is ready when a device is there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.kernels import gpu  # noqa: E402
from benchmarks.kernels.problems import Problem, of_method, problems, random_blocks  # noqa: E402
from benchmarks.kernels.timing import roofline, seconds  # noqa: E402
from genkit.kernels import BlockPlan  # noqa: E402
from genkit.layout import TokenLayout  # noqa: E402

CPU = torch.device("cpu")


def options(**changed):
    return argparse.Namespace(
        **({"repeats": 1, "quick": True, "problem": None, "list": False, "roofline": False} | changed)
    )


@pytest.mark.parametrize(
    "problem",
    [
        Problem("random", 300, 2, 16, random_blocks(300, 2, 0.5)),
        Problem("grid", 244, 1, 16, of_method("neighborhood", TokenLayout.of_grid(3, 8, 10, text=4), size=(3, 3, 3))),
    ],
    ids=lambda problem: problem.name,
)
def test_a_row_holds_sparse_and_dense_rates(problem):
    row = gpu.measure(problem, CPU, torch.float32, options())
    assert row["forward ms"] > 0 and row["backward ms"] == row["backward ms"]
    assert row["flash TFLOP/s"] >= 0 and str(row["cudnn TFLOP/s"]).startswith("refused")
    assert 0 < float(row["visited"].rstrip("%")) < 400


def test_random_problems_visit_what_they_say():
    plan = random_blocks(1024, 2, 0.25)(CPU)
    assert isinstance(plan, BlockPlan) and (plan.full_count == 4).all()
    assert gpu.visited_pairs(plan, 2) == 2 * 1024 * 1024 // 4


def test_registered_sizes_are_those_of_the_models():
    known = problems()
    assert known["wan2.1-1.3b-480p-radial"].tokens == 32760 and known["wan2.1-1.3b-720p-radial"].tokens == 75600
    assert known["hunyuan-720p-neighborhood"].tokens == 119056 and known["flux-1k-neighborhood"].tokens == 4608


def test_without_a_device_it_refuses(capsys):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert gpu.run(options()) == 1 and "needs a CUDA or ROCm device" in capsys.readouterr().err
    assert gpu.run(options(problem=["none"])) == 2 and "unknown problems" in capsys.readouterr().err


def test_roofline_and_timing_are_positive(monkeypatch):
    import benchmarks.kernels.timing as timing

    monkeypatch.setattr(timing, "seconds", lambda function, device: 1e-3 if function() is not None else 1e-3)
    assert all(value > 0 for value in roofline(CPU, torch.float32).values())
    assert seconds(lambda: None, CPU, repeats=2, warm=0) >= 0
