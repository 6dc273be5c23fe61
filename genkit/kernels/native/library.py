"""Compiles the kernels in ``csrc`` with whatever C++ compiler there is, keeps the result, and loads it.

One source serves AVX-512, AVX2 and everything else; how wide vectors are is told to the compiler. A library holds the
kernels for one kind of processor and one head size, for head sizes must be known to the compiler. It is made on first
use, in a second or two, and kept on disk under a name that holds a hash of the source, the compiler and its options.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from genkit.kernels.native.compiler import Compiled

SOURCE = Path(__file__).parent / "csrc"
# Nothing here lets a compiler forget about infinities: -inf is a hidden pair, and NaN must stay visible.
_OPTIONS = "-std=c++17 -O3 -shared -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -fno-math-errno".split()
_OPTIONS += ["-fno-trapping-math", "-w"]
_SECONDS = 600  # that a compiler may take; it takes two, but a machine may be busy
_VISITS = "k v starts units masks bits valid rows block halves unit first last bias scale".split()
# The arguments of the kernels, in the order of the structures in ``csrc``.
ARGUMENTS = {
    "forward": (*_VISITS, *"q q_stride out out_stride top total".split()),
    "backward": (*_VISITS, *"q q_stride d_out d_out_stride lse delta d_q d_q_stride d_k d_v factor".split()),
}


@dataclass(frozen=True)
class Kind:
    """A kind of processor.

    Args:
        vector_bytes: of a vector. options: that let the compiler use its instructions.
        needs: the least capability torch must tell, on x86-64; None runs everywhere.
    """

    vector_bytes: int
    options: tuple[str, ...]
    needs: str | None


KINDS = {
    "avx512": Kind(
        64, ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"), "AVX512"
    ),
    "avx2": Kind(32, ("-mavx2", "-mfma"), "AVX2"),
    "portable": Kind(16, (), None),
}


def capability() -> str:
    """What torch uses of this processor: ``AVX512``, ``AVX2`` or another name. ``ATEN_CPU_CAPABILITY`` lowers it."""
    return torch.backends.cpu.get_cpu_capability()


def processor_why_not(kind: str) -> str | None:
    """Why this processor cannot run a kind of kernels, or None."""
    needs = KINDS[kind].needs
    if needs is None:
        return None
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it is for x86-64, this machine is {platform.machine()}"
    found = capability()
    good = found.startswith("AVX512") or found == needs
    return None if good else f"torch finds {found} on this processor, {needs} is needed"


@cache
def compilers() -> tuple[tuple[str, ...], ...]:
    """Commands that may compile C++, the best first: the one named in ``CXX`` alone, else the machine's, else that of
    the ziglang package."""
    if named := os.environ.get("CXX"):
        return (tuple(shlex.split(named)),)
    paths = [shutil.which(name) for name in ("c++", "g++", "clang++")]
    found: list[tuple[str, ...]] = [(path,) for path in paths if path]
    if find_spec("ziglang") is not None:
        # "cc" and not "c++", which would first compile a library of C++ for minutes that the kernels have no need of
        found.append((sys.executable, "-m", "ziglang", "cc"))
    return tuple(found)


@cache
def load(kind: str, dim: int) -> ctypes.CDLL | str:
    """The library of a kind for heads of ``dim`` channels, a multiple of 16; or why there is none. Compiles it on first
    use."""
    if reason := processor_why_not(kind):
        return reason
    if not compilers():
        return "no C++ compiler was found (c++, g++, clang++), and the ziglang package, which brings one, is not there"
    reasons = []
    for compiler in compilers():
        try:
            return _opened(_made(compiler, kind, dim), kind, dim)
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            reasons.append(f"{' '.join(compiler)}: {_told(error)}")
    return f"compiling failed; {'; '.join(reasons)}"


def kernel(kind: str, name: str, dim: int) -> Compiled:
    """The kernel ``"forward"`` or ``"backward"`` of a kind.

    Raises:
        RuntimeError: there is none; ask :func:`load` first.
    """
    library = load(kind, dim)
    if isinstance(library, str):
        raise RuntimeError(f"native kernels for {kind} cannot run here: {library}")
    work = ctypes.cast(getattr(library, f"{name}_work"), ctypes.c_void_p).value
    return Compiled(ARGUMENTS[name], getattr(library, f"{name}_scratch_bytes")(), work or 0, library)


def folder() -> Path:
    """Where libraries are kept: ``genkit/kernels`` in the user's folder for caches (``XDG_CACHE_HOME``), or a folder of
    this process alone where that cannot be written to."""
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        kept = (Path(home) if home else Path.home() / ".cache") / "genkit" / "kernels"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return kept
    except (OSError, RuntimeError):  # the latter where there is no home
        return _private()


@cache
def _private() -> Path:
    made = tempfile.mkdtemp(prefix="genkit-kernels-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def command(compiler: Sequence[str], kind: str, dim: int) -> list[str]:
    """What compiles a library, without the name of the result."""
    found = KINDS[kind]
    sizes = [f"-DVECTOR_BYTES={found.vector_bytes}", f"-DHEAD_SIZE={dim}"]
    return [*compiler, *_OPTIONS, *found.options, *sizes, str(SOURCE / "attention.cpp")]


def _made(compiler: tuple[str, ...], kind: str, dim: int) -> Path:
    """The file of a library, compiled if need be. It is written under another name and renamed, so that processes that
    start together each make one and the last one stays."""
    line = command(compiler, kind, dim)
    told = repr((line[:-1], _identity(compiler), platform.system(), platform.machine())).encode()
    key = hashlib.sha256(told + b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))).hexdigest()[:24]
    target = folder() / f"attention-{kind}-{dim}-{key}.{'dll' if platform.system() == 'Windows' else 'so'}"
    seal = target.with_suffix(".sha256")
    if _is_whole(target, seal):
        return target
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as scratch:
        made = Path(scratch) / target.name
        # a compiler's own cache, a few MB that are of no use afterwards
        places = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(Path(scratch) / "zig"))
        subprocess.run(
            [*line, "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**places, **os.environ},
        )
        checksum = Path(scratch) / seal.name
        checksum.write_text(_checksum(made), "ascii")
        try:
            os.replace(made, target)
            os.replace(checksum, seal)
        except PermissionError:  # another process has made it, and Windows does not replace what is in use
            if not target.is_file():
                raise
    return target


def _is_whole(library: Path, seal: Path) -> bool:
    """Whether a kept library is what was compiled. One that lost its end may load and then kill the process."""
    try:
        return seal.read_text("ascii") == _checksum(library)
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _identity(compiler: tuple[str, ...]) -> object:
    """What changes with a compiler: the version of the ziglang package, or the program's file."""
    if "ziglang" in compiler:
        return metadata.version("ziglang")
    program = shutil.which(compiler[0])
    if program is None:
        raise FileNotFoundError(f"there is no program {compiler[0]!r}")
    about = os.stat(program)
    return os.path.realpath(program), about.st_size, about.st_mtime_ns


def _opened(path: Path, kind: str, dim: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ARGUMENTS:
        size = getattr(library, f"{name}_scratch_bytes")
        size.restype = ctypes.c_int64
    sizes = library.head_size(), library.vector_bytes()
    if sizes != (dim, KINDS[kind].vector_bytes):
        raise OSError(f"{path} is for another size: {sizes}")
    return library


def _told(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    if isinstance(error, subprocess.CalledProcessError) and not error.stderr:
        return f"it ended with status {error.returncode} and said nothing"
    lines = [line for line in str(text).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)
