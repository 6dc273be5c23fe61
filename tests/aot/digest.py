"""What decides the numbers of a kernel, as a digest: found by the compiler's front end alone, in a tenth of a second.

Triton's own cache key hashes the text of a kernel, its callees and the line it begins at. It changes when lines move or
a comment is mended, and does not see what a record's fields or a module's constants are. So what is hashed here is the
module that the front end makes of a launch, without source locations: the kernel with everything it calls, captures and
is specialised for is in it, and all later passes read nothing but it, the target and the options. (Triton compiles such
a module from a file to the same binary.) Besides: Triton's own files with the assemblers and device libraries it
brings, and the code that reads the numbers off a binary.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import triton
from triton import compiler
from triton._C.libtriton import get_cache_invalidating_env_vars, ir
from triton.runtime.cache import triton_key

from tests.aot import loops
from tests.aot.driver import Usage, usage

_compile = compiler.compile


@dataclass(frozen=True)
class Asked:
    """A kernel as a launch asks for it, not compiled yet."""

    source: Any
    target: Any
    options: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """Of everything that decides the numbers."""
        backend = compiler.make_backend(self.target)
        options = backend.parse_options(dict(self.options))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
        module = self.source.make_ir(self.target, options, functions, modules, context)
        setting = (
            str(self.target),
            backend.hash(),
            options.hash(),
            str(sorted(get_cache_invalidating_env_vars().items())),
        )
        return _hash(module.str_nodebug(), *setting, installation(), reading())

    def compile(self) -> Any:
        """The compiled kernel."""
        return _compile(self.source, target=self.target, options=self.options)


@contextmanager
def asking() -> Iterator[None]:
    """Launches that would compile return an :class:`Asked` instead. Kernels keep what they returned: for processes that
    do nothing else."""

    def ask(src: Any, target: Any = None, options: dict[str, Any] | None = None, _env_vars: Any = None) -> Asked:
        return Asked(src, target, dict(options or {}))

    compiler.compile = ask
    try:
        yield
    finally:
        compiler.compile = _compile


@cache
def installation() -> str:
    """Digest of Triton: front end, compiler, assemblers, disassemblers and device libraries."""
    return _hash(triton.__version__, triton_key(), files(Path(triton.__file__).parent / "backends"))


def files(backends: Path) -> str:
    """Digest of the tools and libraries that backends bring, which Triton's key leaves out in part."""
    found = [path for path in (*backends.glob("*/bin/*"), *backends.glob("*/lib/*")) if path.is_file()]
    told = [f"{path.relative_to(backends)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(found)]
    return _hash(*told)


@cache
def reading() -> str:
    """Digest of the code that reads numbers off a binary; of what it does, not of its comments."""
    return _hash(*(code(inspect.getsource(part)) for part in (Usage, usage, loops)))


def code(source: str) -> str:
    """Python without comments, docstrings and line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _hash(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
