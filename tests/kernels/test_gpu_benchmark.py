"""The GPU benchmark's own code, run small on the CPU so that it is ready when a device is there."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.environment import write_results  # noqa: E402
from benchmarks.kernels import gpu  # noqa: E402
from benchmarks.kernels.problems import Problem, of_method, problems, random_blocks  # noqa: E402
from benchmarks.kernels.timing import roofline, seconds  # noqa: E402
from genkit.kernels import BlockPlan  # noqa: E402
from genkit.layout import TokenLayout  # noqa: E402

CPU = torch.device("cpu")


def options(**changed):
    return argparse.Namespace(
        **(
            {"repeats": 1, "quick": True, "problem": None, "list": False, "roofline": False, "budget": None}
            | {"dtype": "bf16", "output": "kernels_gpu"}
            | changed
        )
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


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["kernels_gpu", "--help"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(option in told for option in ("--problem", "--list", "--quick", "--roofline", "--budget", "--output"))


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Up to the tests everything believes in a device; nothing is measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "roofline", lambda device, dtype: {"matrix TFLOP/s": 1.0})
    measured = []
    monkeypatch.setattr(gpu, "measure_all", lambda chosen, *rest: measured.extend(chosen))
    return measured


@pytest.mark.parametrize(
    "code,out,green",
    [
        (0, "40 passed", True),
        (1, "1 failed, 39 passed", False),
        (0, "SKIPPED [40] tests/gpu/a.py: needs a CUDA or ROCm device, and there is none here", False),
        (0, "SKIPPED [1] tests/gpu/a.py:3: needs 40 GB of device memory\n39 passed", True),
        (5, "no tests ran", False),
        (1, "", False),
    ],
)
def test_red_tests_mean_no_figures(code, out, green, as_if_on_a_gpu, monkeypatch, capsys):
    ended = subprocess.CompletedProcess([], code, out, "No module named pytest" if not out else "")
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **options: ended)
    assert gpu.run(options()) == (0 if green else 1)
    told = capsys.readouterr()
    assert bool(as_if_on_a_gpu) == green and ("not green" in told.err) != green
    assert not any(problem.large for problem in as_if_on_a_gpu)
    if not out:
        assert "No module named pytest" in told.out


def test_results_are_kept_when_memory_or_time_runs_out(monkeypatch, tmp_path, capsys):
    made = [Problem(name, 64, 1, 16, random_blocks(64, 1, 0.5)) for name in ("fits", "large", "late")]

    def measure(problem, *rest):
        if problem.name == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
        return {"problem": problem.name, "tokens": 64, "forward ms": 1.0}

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "write_results", lambda *given: write_results(*given, folder=tmp_path))
    clock = iter([0.0, 1.0, 2.0, 99.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    gpu.measure_all(made, CPU, torch.float32, options(budget=50.0), {})
    assert "not measured: late" in capsys.readouterr().out
    text = (tmp_path / "kernels_gpu.md").read_text()
    assert "| fits | 64 | 1.0 | - |" in text and "Tried to allocate 80 GiB" in text and "Not measured: late" in text


def test_slow_calls_are_measured_less_often():
    calls = []
    assert seconds(lambda: calls.append(1), CPU, repeats=9, warm=4, limit=-1.0) >= 0
    assert len(calls) == 1 + 3


def test_roofline_and_timing_are_positive(monkeypatch):
    import benchmarks.kernels.timing as timing

    monkeypatch.setattr(timing, "seconds", lambda function, device: 1e-3 if function() is not None else 1e-3)
    assert all(value > 0 for value in roofline(CPU, torch.float32).values())
    assert seconds(lambda: None, CPU, repeats=2, warm=0) >= 0
