"""The node package of ``integrations/comfyui`` as ComfyUI loads it: from its folder, under a name of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
NAME = "custom_nodes_genkit"


def load() -> ModuleType:
    """The package, imported once."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def patched(model, method="neighborhood", arguments="size=1x3x3", start=0.0, end=1.0, dense=""):
    """A model through the node."""
    node = load().NODE_CLASS_MAPPINGS["GenkitSparseAttention"]()
    (out,) = node.patch(model, method, arguments, start, end, dense)
    return out
