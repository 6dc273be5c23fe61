"""Finding records: every file of this folder has one (``FAMILY``) or those of a lineage (``FAMILIES``): no list.

Records of other packages and of scripts come after them, see :mod:`genkit.families.outside`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families import outside
from genkit.families.base import Family
from genkit.families.facts import PipelineFacts
from genkit.families.out_of_scope import OUT_OF_SCOPE

#: Files of this folder that are not records.
SHARED = (
    "base", "codec", "facts", "grids", "inputs", "lookup", "originals", "out_of_scope", "outside", "prompts",
    "sizes", "sound_features", "stack", "training",
)  # fmt: skip


@functools.cache
def _own() -> tuple[Family, ...]:
    room = str(Path(__file__).parent)
    names = sorted(found.name for found in pkgutil.iter_modules([room]) if found.name not in SHARED)
    files = [importlib.import_module(f"genkit.families.{name}") for name in names]
    return tuple(family for file in files for family in getattr(file, "FAMILIES", None) or (file.FAMILY,))


def _all() -> tuple[Family, ...]:
    return _own() + outside.families(_own())


def register_family(family: Family) -> Family:
    """Make a family of models known that genkit has no record of, for this process.

    From then on :func:`genkit.patch`, ``genkit families`` and every command treat it like genkit's own. Packages offer
    records without a call, by an entry point of the group ``genkit.families``. Costs nothing at run time.

    Args:
        family: the record. One registered before under the same name, by the same module, is replaced, so that the cell
            of a notebook can run again.

    Returns:
        The record, so that it can be bound in the same line.

    Raises:
        UsageError: no record, one that could not work (the message says what is wrong with it), or one whose name or
            classes already belong to somebody, whom the message names.
    """
    caller = sys._getframe(1).f_globals.get("__name__", "an unnamed module")
    return outside.register(family, _own(), f"module {caller}")


def records() -> tuple[Family, ...]:
    """The families whose attention genkit knows, by file name and the order within a file; then those of others."""
    return tuple(family for family in _all() if family.classes)


def facts_of(class_name: str) -> PipelineFacts | None:
    """What is known about a pipeline class, or None for one that no record covers."""
    return next((family.facts for family in _all() if family.facts.covers(class_name)), None)


def can(task: str, class_name: str) -> bool:
    """Whether a task of genkit can drive a pipeline class."""
    facts = facts_of(class_name)
    return facts is not None and facts.can(task, class_name)


def able(task: str) -> tuple[str, ...]:
    """The usual pipelines a task of genkit can drive, for messages."""
    return tuple(name for family in records() for name in family.pipelines if can(task, name))


@dataclass(frozen=True)
class FamilyInfo:
    """What `genkit.families()` says about a family.

    Args:
        name: short name.
        kind: what the models make: "video", "image" or "sound".
        classes: Diffusers model classes.
        pipelines: the usual pipelines.
        roles: kinds of attention that can be patched.
        grid: where the token grid comes from.
        text: where text tokens sit in joint attention: "first", "last" or "apart" (cross-attention).
        branches: names the pipelines announce for their calls, for ``Schedule(branches=...)``.
        unserved: kinds of attention that cannot be patched, with the reason.
        notes: what else to know.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    pipelines: tuple[str, ...]
    roles: tuple[str, ...]
    grid: str
    text: str
    branches: tuple[str, ...]
    unserved: Mapping[str, str]
    notes: str


def families() -> tuple[FamilyInfo, ...]:
    """The model families genkit knows, each tested on a tiny model of the real class."""
    names = [field.name for field in dataclasses.fields(FamilyInfo)]
    return tuple(FamilyInfo(**{name: getattr(family, name) for name in names}) for family in records())


def unwrap(model: Any) -> Any:
    """The Diffusers module inside torch.compile, DistributedDataParallel and peft wrappers."""
    for _ in range(8):
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config") and hasattr(model, "base_model"):
            model = model.get_base_model()
        elif type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
            model = model.module
        else:
            break
    return model


def short_name(class_name: str) -> str:
    """``Foo`` of ``FooTransformer3DModel``."""
    return re.sub(r"(Transformer|UNet)?(\dD)?(Condition)?Model$", "", class_name) or class_name


def diffusers_class(model: Any) -> str | None:
    """Name of the most derived class of a model that Diffusers defines or a record of others describes, or None."""
    others = {name for family in outside.families(_own()) for name in family.classes}
    for cls in type(model).__mro__:
        if cls.__module__.startswith("diffusers.") or cls.__name__ in others:
            return cls.__name__
    return None


def family_of(model: Any) -> Family:
    """The record of a denoiser; UnsupportedError names what is missing for an unknown class."""
    name = diffusers_class(model)
    known = {cls: family for family in records() for cls in family.classes}
    if name in known:
        return known[name]
    given = type(model).__name__ if name is None else name
    if given in OUT_OF_SCOPE:
        raise UnsupportedError(f"{given} cannot be patched: {OUT_OF_SCOPE[given]}")
    raise UnsupportedError(
        f"{type(model).__name__} is not a model genkit knows: there is no record of its token grid, text order and "
        f"attention roles; `genkit families` lists the {len(known)} classes it knows, and `genkit families --explain "
        f"FOLDER` drafts a record for another"
    )
