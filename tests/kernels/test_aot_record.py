"""Recorded numbers of kernels: what changes the digest they are found by, and that none of them passes unjudged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.aot import __main__ as command  # noqa: E402
from tests.aot import budgets, check, digest, record  # noqa: E402
from tests.aot.driver import TARGETS  # noqa: E402
from tests.aot.loops import Loop  # noqa: E402
from tests.aot.record import Measured  # noqa: E402
from tests.aot.variants import Variant  # noqa: E402

SOURCE = '''
import types
from typing import Any, NamedTuple

import triton
import triton.language as tl

FACTOR = tl.constexpr(2.0)
near = types.ModuleType("near")
near.SHIFT = tl.constexpr(1)


class View(NamedTuple):
    ptr: Any
    step: Any
    first: Any


@triton.jit
def inner(x):
    return x * FACTOR


@triton.jit
def outer(x):
    """Calls another."""
    return inner(x) + near.SHIFT


@triton.jit
def kernel(view, out, N: tl.constexpr):
    """What it does."""
    at = tl.arange(0, N)
    tl.store(out + at, outer(tl.load(view.ptr + view.first + at * view.step)))
'''
#: What is replaced in the source, and what in the call; the first changes nothing that is compiled.
SAME = {
    "lines moved": {"edit": ("import types", "\n\n# a comment\n\nimport types")},
    "a line inside moved": {"edit": ("    at = ", "\n    # a comment\n    at = ")},
    "docstring": {"edit": ("What it does", "What it is for")},
    "another function": {"edit": ("FACTOR = ", "@triton.jit\ndef unused(x):\n    return x\n\n\nFACTOR = ")},
}
OTHER = {
    "kernel": {"edit": ("at * view.step", "at * view.step + 1")},
    "callee of a callee": {"edit": ("x * FACTOR", "x + FACTOR")},
    "captured constant": {"edit": ("constexpr(2.0)", "constexpr(3.0)")},
    "constant of a module": {"edit": ("constexpr(1)", "constexpr(2)")},
    "order of a record": {"edit": ("    step: Any\n    first: Any", "    first: Any\n    step: Any")},
    "constexpr": {"n": 128},
    "type of an argument": {"dtype": "float32"},
    "multiple of 16": {"step": 16},
    "warps": {"options": {"num_warps": 8, "enable_fp_fusion": False}},
    "option of the compiler": {"options": {"num_warps": 4, "enable_fp_fusion": True}},
    "target": {"target": "sm_80"},
    "vendor": {"target": "gfx942"},
    "environment": {"environment": {"DISABLE_PTXAS_OPT": "1"}},
    "Triton's version": {"patch": ("triton.__version__", "0.1")},
    "Triton's files": {"patch": ("digest.triton_key", "lambda: 'another'")},
    "tools and libraries": {"patch": ("digest.files", "lambda folder: 'other'")},
    "assembler": {"patch": ("digest.compiler.make_backend(target).__class__.hash", "lambda self: 'other'")},
    "reading of numbers": {"patch": ("digest.reading", "lambda: 'otherwise'")},
}
DIGESTS = """
import importlib, json, os, sys
import torch, triton
from tests.aot import digest
from tests.aot.driver import pretend
digest.files = lambda folder: "tools"  # hashed once in a test of their own
digests = {}
for name, case in json.load(sys.stdin).items():
    sys.path.insert(0, case["folder"])
    sys.modules.pop("subject", None)
    importlib.invalidate_caches()
    subject = importlib.import_module("subject")
    sys.path.pop(0)
    pretend(case["target"])
    target = triton.runtime.driver.active.get_current_target()
    os.environ.update(case["environment"])
    before = digest.files, digest.triton_key, digest.reading, triton.__version__
    backend = type(digest.compiler.make_backend(target))
    backend_hash = backend.hash
    if case["patch"]:
        where, value = case["patch"]
        exec(f"{where} = {value if value.startswith('lambda') else repr(value)}")
    digest.installation.cache_clear()
    x = torch.zeros(4096, dtype=getattr(torch, case["dtype"]))
    view = subject.View(x, **{"step": case["step"], "first": 5})
    with digest.asking():
        asked = subject.kernel.warmup(view, x, case["n"], grid=(1,), **case["options"])
    digests[name] = asked.digest
    digest.files, digest.triton_key, digest.reading, triton.__version__ = before
    backend.hash = backend_hash
    for key in case["environment"]:
        del os.environ[key]
print(json.dumps(digests))
"""


def test_the_digest_changes_with_all_that_decides_a_binary_and_with_nothing_else(tmp_path):
    usual = {"n": 64, "dtype": "float16", "step": 3, "target": "sm_90", "environment": {}, "patch": None}
    usual["options"] = {"num_warps": 4, "enable_fp_fusion": False}
    cases = {}
    for name, changes in {"base": {}, "base again": {}, **SAME, **OTHER}.items():
        old, new = changes.get("edit", ("", ""))
        assert SOURCE.count(old) == 1 or not old, name
        folder = tmp_path / name.replace(" ", "_").replace("'", "")
        folder.mkdir()
        (folder / "subject.py").write_text(SOURCE.replace(old, new) if old else SOURCE)
        cases[name] = usual | {key: value for key, value in changes.items() if key != "edit"} | {"folder": str(folder)}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: found[name] == found["base"] for name in found} == {name: name not in OTHER for name in cases}
    assert len(set(found.values())) == 1 + len(OTHER)


def test_tools_and_libraries_are_hashed_by_content(tmp_path):
    for name in ("nvidia/bin/ptxas", "nvidia/lib/libdevice.10.bc", "amd/lib/ocml.bc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    before = digest.files(tmp_path)
    assert digest.files(tmp_path) == before
    for name in ("nvidia/bin/ptxas", "nvidia/lib/libdevice.10.bc", "amd/lib/ocml.bc"):
        (tmp_path / name).write_text("second")
        assert digest.files(tmp_path) != before
        (tmp_path / name).write_text("first")
    (tmp_path / "amd/lib/new.bc").write_text("")
    assert digest.files(tmp_path) != before


def test_comments_of_the_reading_code_do_not_count():
    source = 'def f(x):\n    """Say."""\n    # why\n    return (x +\n        1)\n'
    assert digest.code(source) == digest.code("def f(x):\n    return x + 1")
    assert digest.code(source) != digest.code("def f(x):\n    return x + 2")
    assert digest.code('class A:\n    """Only this."""\n') == digest.code("class A:\n    pass")


class Kernel:
    """What a launch asks for, known by its digest; compiling it counts."""

    def __init__(self, numbers: Measured | None = None, digest: str = "one"):
        self.numbers, self.digest, self.compiled = numbers, digest, 0

    def __call__(self) -> Kernel:
        return self

    def measured(self) -> Measured:
        self.compiled += 1
        if self.numbers is None:
            raise RuntimeError("the compiler gave up")
        return self.numbers


LOOP = Loop(100, 8, {"HGMMA": 4}, None, True, 0, 0)
GOOD = Measured(168, 0, 1024, [LOOP])


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """A check of given kernels of sm_90, whose record is in a folder of its own: number of failures."""
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(record, "installation", lambda: "this one")
    monkeypatch.setattr(record, "measure", lambda asked: asked.measured())
    monkeypatch.setattr(check, "pretend", lambda arch: None)

    def run(*kernels: Kernel, flags=(), variant: Variant | None = None) -> int:
        launches = [(f"kernel {kernel.digest}", kernel, "rows", False, variant) for kernel in kernels]
        monkeypatch.setattr(check, "launches", lambda arch, full: launches)
        return check.check("sm_90", flags)

    return run


def recorded(numbers: Measured = GOOD, digest: str = "one") -> bytes:
    return record.save("sm_90", {digest: ("kernel", numbers)}).read_bytes()


def test_what_is_recorded_is_not_compiled(checks, capsys):
    recorded()
    kernel, new = Kernel(), Kernel(GOOD, "two")
    assert checks(kernel, new) == 0
    assert (kernel.compiled, new.compiled) == (0, 1)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "| sm_90 | kernel one | rows | 168 | 0 | 1 | recorded | ok |"
    assert "recorded" not in second


@pytest.mark.parametrize("numbers", [GOOD._replace(spilled=8), GOOD._replace(shared=300 << 10)])
def test_recorded_numbers_over_a_limit_fail(checks, capsys, numbers):
    recorded(numbers)
    kernel = Kernel()
    assert checks(kernel) == 1
    assert not kernel.compiled and "| recorded | OVER BUDGET" in capsys.readouterr().out


def test_recorded_loops_are_held_against_the_budgets_of_today(checks, capsys, monkeypatch):
    variant = Variant("dq", 128, "bf16", "box")
    tile = variant.tile("sm_90")
    scores = tile.queries * tile.keys
    each = Loop(250 * scores // 1024 // tile.warps, scores // tile.warps // 32, {}, None, True, 0, 0)
    recorded(GOOD._replace(loops=[each] * len(variant.loops("sm_90"))))
    assert checks(Kernel(), variant=variant) == 0
    monkeypatch.setitem(budgets.FULL, ("sm_90", "dq"), 200)
    assert checks(Kernel(), variant=variant) == 1
    assert "| recorded | full blocks: 250 instructions, allowed 200" in capsys.readouterr().out
    recorded(GOOD._replace(loops=[each]))
    assert checks(Kernel(), variant=variant) == 1


def test_recording_keeps_what_is_asked_for_and_drops_the_rest(checks, tmp_path):
    recorded()
    (tmp_path / "sm_80.json").write_text("of another target")
    old, new = Kernel(), Kernel(GOOD._replace(registers=255), "two")
    assert checks(old, new, flags=["--record"]) == 0
    assert (old.compiled, new.compiled) == (0, 1)
    found, reason = record.load("sm_90")
    assert (found, reason) == ({"one": GOOD, "two": new.numbers}, "")
    assert checks(Kernel(digest="two"), flags=["--record"]) == 0
    assert set(record.load("sm_90")[0]) == {"two"}
    assert {path.name for path in tmp_path.iterdir()} == {"sm_80.json", "sm_90.json"}
    assert (tmp_path / "sm_80.json").read_text() == "of another target"


def test_what_is_over_a_limit_fails_when_recorded_and_from_the_record(checks):
    spills = GOOD._replace(spilled=8)
    assert checks(Kernel(spills), flags=["--record"]) == 1
    kernel = Kernel()
    assert checks(kernel) == 1 and not kernel.compiled


@pytest.mark.parametrize("flags", [["--record"], ["--again", "--record"]])
def test_a_kernel_that_does_not_compile_records_nothing(checks, tmp_path, flags):
    before = recorded()
    with pytest.raises(RuntimeError, match="gave up"):
        checks(Kernel(GOOD), Kernel(digest="two"), flags=flags)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_again_compiles_all_and_fails_where_the_record_says_otherwise(checks, capsys):
    recorded()
    same = Kernel(GOOD)
    assert checks(same, flags=["--again"]) == 0 and same.compiled
    assert checks(Kernel(GOOD._replace(registers=170)), flags=["--again"]) == 1
    assert "recorded otherwise" in capsys.readouterr().out
    assert checks(Kernel(GOOD._replace(registers=170)), flags=["--again", "--record"]) == 0
    assert record.load("sm_90")[0]["one"].registers == 170


def test_without_a_record_all_is_compiled_and_said(checks, capsys):
    kernel = Kernel(GOOD)
    assert checks(kernel) == 0 and kernel.compiled
    assert capsys.readouterr().out.startswith("no record of sm_90: every kernel is compiled")


@pytest.mark.parametrize("part", ["triton.__version__", "installation", "reading"])
def test_a_record_of_another_installation_is_not_taken(checks, capsys, monkeypatch, part):
    recorded()
    owner = record.triton if part.startswith("triton") else record
    name = part.rpartition(".")[2]
    monkeypatch.setattr(owner, name, "0.1" if name == "__version__" else lambda: "another")
    kernel = Kernel(GOOD)
    assert checks(kernel) == 0 and kernel.compiled
    assert "the record of sm_90 was made otherwise (Triton" in capsys.readouterr().out


def _broken(text: str) -> list[str]:
    told = json.loads(text)
    entry = told["kernels"]["one"]
    wrong = [{"registers": None}, {"spilled": "0"}, {"shared": -1}, {"loops": [[1, 2]]}, {"loops": 3}]
    wrong += [{"loops": [[*LOOP[:5], None, *LOOP[6:]]]}]
    entries = [entry | change for change in wrong] + [{k: v for k, v in entry.items() if k != "spilled"}, None]
    return ["", text[:-20], "[]", "{}"] + [json.dumps(told | {"kernels": {"one": entry}}) for entry in entries]


def test_a_record_that_cannot_be_read_is_an_error_that_says_what_to_do(checks, tmp_path):
    text = recorded().decode()
    for broken in _broken(text):
        (tmp_path / "sm_90.json").write_text(broken)
        with pytest.raises(record.BadRecord, match=r"sm_90\.json is no record .* sm_90 --again --record"):
            checks(Kernel())
    assert checks(Kernel(GOOD), flags=["--again", "--record"]) == 0
    assert record.load("sm_90")[0] == {"one": GOOD}


def test_committed_records_are_of_targets_and_can_be_read(monkeypatch):
    for path in record.FOLDER.iterdir():
        maker = json.loads(path.read_text())["made by"]
        monkeypatch.setattr(record, "made_by", lambda maker=maker: maker)
        found, reason = record.load(path.stem)
        assert path.suffix == ".json" and path.stem in TARGETS and found and not reason


@pytest.mark.parametrize("given", [["--ful"], ["sm_9"], ["sm_90", "--recorded"], ["--full", "--record"]])
def test_unknown_words_are_refused(given, capsys):
    assert command.main(given) == 2
    assert given[-1] in capsys.readouterr().err


def test_the_command_counts_and_passes_failures_on(monkeypatch, capsys):
    rows = "| {} | a | rows | 1 | 0 | 1 | recorded | ok |\n| {} | b | rows | 1 | 0 | 1 | 2.5 | ok |\n"

    def run(arguments, **_):
        target = arguments[3]
        assert arguments[4:] == []
        return subprocess.CompletedProcess(arguments, int(target == "sm_80"), rows.format(target, target))

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main(["sm_80", "sm_90", "sm_90"]) == 1
    out = capsys.readouterr().out
    assert "2 targets in 0 s: 2 kernels compiled, 2 as recorded; failed: sm_80 (exit 1)" in out
    assert "python -m tests.aot sm_80 sm_90 --record" in out
    assert command.main(["sm_90"]) == 0
