"""One method on one layer of one denoiser, as a handle holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit.patching.assignment import Assignment
from genkit.patching.patched_layer import PatchedLayer
from genkit.patching.patched_model import PatchedModel
from genkit.patching.targets import Denoiser


@dataclass(frozen=True)
class Held:
    """One method on one layer of one denoiser, as a handle holds it.

    Args:
        denoiser: the model.
        patched: what follows it.
        layer: the attention module.
        assignment: the method there.
        module: the attention module itself.
    """

    denoiser: Denoiser
    patched: PatchedModel
    layer: PatchedLayer
    assignment: Assignment
    module: Any
