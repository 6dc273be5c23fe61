"""Finding records: every file of this folder with ``ORIGINALS`` is one, there is no list to keep."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from pathlib import Path

from genkit.errors import UsageError, explain
from genkit.families.originals.base import Originals

#: Files of this folder that describe no family.
SHARED = ("base", "lookup")


@functools.cache
def originals() -> dict[str, Originals]:
    """Family -> the names of its layers, for all families that have a record."""
    room = str(Path(__file__).parent)
    names = sorted(found.name for found in pkgutil.iter_modules([room]) if found.name not in SHARED)
    found = [importlib.import_module(f"genkit.families.originals.{name}").ORIGINALS for name in names]
    return {each.family: each for each in found}


def originals_named(text: str) -> Originals:
    """The record of a family by its name, however it is written: ``LTX-2``, ``ltx2``.

    Raises:
        UsageError: no such family, or none whose names are known.
    """
    known = {_plain(name): record for name, record in originals().items()}
    if _plain(text) not in known:
        raise UsageError(explain("--family", text, sorted(originals())))
    return known[_plain(text)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
