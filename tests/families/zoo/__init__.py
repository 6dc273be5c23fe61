"""Tiny models of the real Diffusers classes, by group: ``build("chrono_edit")`` gives a seeded :class:`Case`.

A builder is a function of one of the modules of this folder, named like the case, that returns model, forward arguments
and what is expected of a patch. ``tests/families/test_every_class.py`` checks every one of them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

from zoo.case import Case

GROUPS = ("video", "video_packed", "image", "packed", "sound", "unets")


@functools.cache
def builders() -> dict[str, tuple[str, Callable[[], Case]]]:
    """Case -> group and builder: the functions a group's module defines that promise a case."""
    found: dict[str, tuple[str, Callable[[], Case]]] = {}
    for group in GROUPS:
        module = importlib.import_module(f"zoo.{group}")
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
            if own and callable(value) and getattr(value, "__annotations__", {}).get("return") == "Case":
                assert name not in found, f"two cases are called {name}"
                found[name] = group, value
    return found


@functools.cache
def build(name: str) -> Case:
    """The case of that name, with seeded weights in eval mode; a test must leave it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = builders()[name][1]()
        # Zero-initialised projections would hide what attention does.
        for parameter in case.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    case.model.eval()
    if not case.refused:
        assert case.reference.isfinite().all()  # remembered before any test patches the model
    return case
