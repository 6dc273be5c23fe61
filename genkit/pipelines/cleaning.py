"""Pipelines whose reading of prompts needs the package ftfy and does not look whether it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

_PACKAGE = "ftfy"


def lacks_ftfy(pipeline_class: type) -> bool:
    """Whether the class's module mends prompts with ftfy, which is not installed, without asking.

    Some modules of Diffusers ask (``WanPipeline``) and read prompts as they are; others raise a NameError.
    """
    module = sys.modules[pipeline_class.__module__]
    code = getattr(getattr(module, "basic_clean", None), "__code__", None)
    names = () if code is None else code.co_names
    return _PACKAGE in names and f"is_{_PACKAGE}_available" not in names and not hasattr(module, _PACKAGE)


def remark(pipeline_class: type, *texts: str | None) -> tuple[str, ...]:
    """What to tell where a prompt might have been changed by ftfy, one line or none: it leaves ASCII as it is."""
    if not lacks_ftfy(pipeline_class) or all(text is None or text.isascii() for text in texts):
        return ()
    return (f"{pipeline_class.__name__} mends broken characters of prompts with ftfy, which is not installed; they are "
            "read as they are",)  # fmt: skip


@contextmanager
def as_they_are(pipeline: Any) -> Iterator[None]:
    """Prompts are read as they are within the block, where ftfy is missing and the pipeline does not ask for it."""
    if not lacks_ftfy(type(pipeline)):
        yield
        return
    module: Any = sys.modules[type(pipeline).__module__]
    setattr(module, _PACKAGE, SimpleNamespace(fix_text=str))
    try:
        yield
    finally:
        delattr(module, _PACKAGE)
