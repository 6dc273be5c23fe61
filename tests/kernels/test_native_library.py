"""The C++ kernels' library: how it is made, kept, chosen and missed."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from genkit.cli import doctor
from genkit.errors import UnsupportedError, UsageError
from genkit.kernels import BlockPlan, block_sparse_attention
from genkit.kernels.native import compiler, kinds, library

CHECK = Path(__file__).parent / "block_sparse" / "attention_check.cpp"
needs_compiler = pytest.mark.skipif(not library.compilers(), reason="no C++ compiler")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache on disk, and nothing remembered of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kinds.SWITCH, raising=False)
    forgotten = library.load, library.compilers, kinds._say_once
    for function in forgotten:
        function.cache_clear()
    yield tmp_path / "genkit" / "kernels"
    for function in forgotten:
        function.cache_clear()


@pytest.fixture
def machine_without(monkeypatch, fresh, tmp_path):
    """No compiler on the path, no ziglang, and no emitted kernels."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    monkeypatch.setattr(compiler, "why_not", lambda kind: "not here")


def libraries(folder):
    return [path for path in folder.iterdir() if path.suffix != ".sha256"]


def attend():
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 100, 2, 16, generator=noise) for _ in range(3))
    plan = BlockPlan.dense(100, 100)
    found = block_sparse_attention(q, k, v, plan, backend="cpu")[0]
    torch.testing.assert_close(found, block_sparse_attention(q, k, v, plan, backend="reference")[0])


def test_arguments_have_the_order_of_the_structures_in_the_source():
    text = {name: (library.SOURCE / f"{name}.h").read_text() for name in ("walk", "forward", "backward")}

    def fields(name: str, struct: str) -> list[str]:
        body = re.search(rf"struct {struct} {{\n(.*?)\n}};", text[name], re.S)[1]
        lines = (line.partition("//")[0] for line in body.splitlines())
        declared = (line.strip().rstrip(";") for line in lines if line.strip())
        return [
            part.strip(" *") for line in declared for part in line.split(None, 1 + ("const" in line))[-1].split(",")
        ]

    common = fields("walk", "Visits")
    for name, struct in (("forward", "ForwardCall"), ("backward", "BackwardCall")):
        own = fields(name, struct)
        assert own[0] == "visits"
        assert library.ARGUMENTS[name] == (*common, *own[1:])


@needs_compiler
def test_a_library_is_made_once_and_kept_under_source_compiler_and_options(fresh, monkeypatch, tmp_path):
    assert not isinstance(library.load("portable", 16), str)
    [made] = libraries(fresh)
    before = made.stat().st_mtime_ns
    library.load.cache_clear()
    assert not isinstance(library.load("portable", 16), str)
    assert made.stat().st_mtime_ns == before and [made] == libraries(fresh)
    copy = tmp_path / "csrc"
    shutil.copytree(library.SOURCE, copy)
    (copy / "walk.h").write_text((copy / "walk.h").read_text() + "\n")
    monkeypatch.setattr(library, "SOURCE", copy)
    library.load.cache_clear()
    assert not isinstance(library.load("portable", 16), str)
    assert len(libraries(fresh)) == 2
    monkeypatch.setattr(library, "_OPTIONS", [*library._OPTIONS, "-DANOTHER"])
    library.load.cache_clear()
    assert not isinstance(library.load("portable", 16), str)
    assert len(libraries(fresh)) == 3


@needs_compiler
@pytest.mark.parametrize("left", [0, 100, 6000, None])
def test_a_kept_library_that_lost_its_end_or_checksum_is_made_anew(fresh, left):
    code = "from genkit.kernels.native import library; print(library.load('portable', 16))"
    assert "CDLL" in subprocess.check_output([sys.executable, "-c", code], text=True)
    [made] = libraries(fresh)
    whole = made.read_bytes()
    if left is None:
        made.with_suffix(".sha256").unlink()
    else:
        os.truncate(made, left)
    assert not isinstance(library.load("portable", 16), str)
    assert [made] == libraries(fresh) and made.stat().st_size == len(whole)
    assert library._is_whole(made, made.with_suffix(".sha256"))


@needs_compiler
def test_processes_that_start_together_do_not_collide(fresh):
    code = "from genkit.kernels.native import library; print(library.load('portable', 16))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0] for process in both]
    assert all("CDLL" in text for text in told) and [process.returncode for process in both] == [0, 0]
    assert len(list(fresh.iterdir())) == 2  # the library and its checksum; nothing half made is left
    [made] = libraries(fresh)
    assert made.name.startswith("attention-portable-16-")


def test_a_machine_without_a_compiler_says_so_once_and_uses_torch(machine_without):
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler.*pip install ziglang"):
        attend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend()
    assert "torch's kernel: no C++ compiler" in kinds.report(torch.float32)


@needs_compiler
def test_a_broken_compiler_is_passed_over_unless_it_was_named(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IEXEC)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert library.compilers()[0] == (str(broken),)
    assert not isinstance(library.load("portable", 16), str)
    monkeypatch.setenv("CXX", str(broken))
    library.compilers.cache_clear()
    library.load.cache_clear()
    assert "out of order" in library.load("portable", 16)
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.compilers.cache_clear()
    library.load.cache_clear()
    assert "no-such-compiler" in library.load("portable", 16)


def test_what_is_asked_for_by_name_runs_or_raises(machine_without, monkeypatch):
    monkeypatch.setenv(kinds.SWITCH, "avx3")
    with pytest.raises(UsageError, match="GENKIT_CPU_KERNELS.*avx3.*allowed: auto, avx512, avx2, portable"):
        attend()
    for name in ("portable", "emitted"):
        monkeypatch.setenv(kinds.SWITCH, name)
        with pytest.raises(UnsupportedError, match=f"GENKIT_CPU_KERNELS={name}"):
            attend()
    monkeypatch.setenv(kinds.SWITCH, "torch")
    attend()


@pytest.mark.parametrize("found, best", [("AVX512", "avx512"), ("AVX2", "avx2"), ("DEFAULT", "portable")])
def test_the_widest_vectors_of_the_processor_are_chosen(found, best, monkeypatch):
    monkeypatch.setattr(library, "capability", lambda: found)
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(library, "load", lambda kind, dim: object())
    monkeypatch.setattr(compiler, "why_not", lambda kind: None if kind == "vectors" else "not here")
    monkeypatch.delenv(kinds.SWITCH, raising=False)
    assert kinds.kind_for(torch.float32, 64) == "vectors"  # the emitted ones
    monkeypatch.setattr(compiler, "why_not", lambda kind: "not here")
    assert kinds.kind_for(torch.float32, 64) == best
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    assert kinds.kind_for(torch.float32, 64) == "portable"
    assert "aarch64" in library.processor_why_not("avx2")


@needs_compiler
@pytest.mark.parametrize("kind", library.KINDS)
@pytest.mark.parametrize("dim", [16, 80])
def test_the_kernels_alone_equal_sums_in_double(kind, dim, tmp_path):
    if reason := library.processor_why_not(kind):
        pytest.skip(reason)
    line = library.command(library.compilers()[0], kind, dim)
    line = [part for part in line[:-1] if part not in ("-shared", "-fvisibility=hidden")]
    program = tmp_path / "check"
    subprocess.run([*line, f"-I{library.SOURCE}", str(CHECK), "-lm", "-o", str(program)], check=True)
    assert subprocess.run([str(program)]).returncode == 0


@pytest.mark.slow
def test_the_kernels_run_on_arm(tmp_path):
    """Compiled by ziglang for another processor, and run in an emulator."""
    pytest.importorskip("ziglang")
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no qemu-aarch64")
    line = library.command((sys.executable, "-m", "ziglang", "cc"), "portable", 64)
    line = [part for part in line[:-1] if part not in ("-shared", "-fvisibility=hidden")]
    program = tmp_path / "check"
    target = ["-target", "aarch64-linux-musl", "-static", f"-I{library.SOURCE}"]
    subprocess.run([*line, *target, str(CHECK), "-lm", "-o", str(program)], check=True)
    assert subprocess.run([emulator, str(program)]).returncode == 0


@pytest.mark.parametrize("block", [8, 64])
def test_a_misspelt_switch_is_refused_whoever_would_compute(fresh, monkeypatch, block):
    x = torch.ones(1, 64, 2, 16)
    plan = BlockPlan.dense(64, 64, block_q=block, block_k=block)
    monkeypatch.setenv(kinds.SWITCH, "nonsense")
    with pytest.raises(UsageError, match="got 'nonsense'"):
        block_sparse_attention(x, x, x, plan, backend="cpu")
    monkeypatch.setenv(kinds.SWITCH, "")
    assert kinds.wanted() == "auto"


def test_kernels_asked_for_by_name_that_cannot_run_are_broken(fresh, monkeypatch):
    monkeypatch.setenv(kinds.SWITCH, "portable")
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    with pytest.raises(UnsupportedError, match="portable asks for kernels that cannot run here"):
        attend()
    finding = doctor._native()
    assert finding.state == "broken" and "in nothing" in finding.detail and "ended with status 1" in finding.detail
