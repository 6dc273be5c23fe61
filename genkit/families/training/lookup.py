"""Finding the record of a pipeline: every file of this folder with ``PIPELINES`` has some, there is no list to keep."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.lookup import diffusers_class, facts_of
from genkit.families.training.base import Builder, Training

#: Files of this folder that describe no family.
SHARED = ("base", "lookup", "objectives", "parts")
#: What the names of pipelines that start from a picture or repaint a part have more than the one from text.
_VARIANT = re.compile("Img2Img|Inpaint|VideoToVideo")
# What a family's facts must tell, in words.
_NEEDED = {
    "codec": "how its latents are normalised",
    "text": "how prompts reach the denoiser",
    "objective": "what the denoiser is trained to answer",
    "lora_targets": "which layers a LoRA changes",
}


@functools.cache
def _files() -> tuple[ModuleType, ...]:
    room = str(Path(__file__).parent)
    names = sorted(found.name for found in pkgutil.iter_modules([room]) if found.name not in SHARED)
    return tuple(importlib.import_module(f"genkit.families.training.{name}") for name in names)


def _builders() -> dict[str, Builder]:
    return {name: build for file in _files() for name, build in file.PIPELINES.items()}


def trainable() -> tuple[str, ...]:
    """The pipeline classes that have a record of training."""
    return tuple(_builders())


def trained_by_tasks() -> tuple[str, ...]:
    """The pipeline classes whose records say how they are trained on several tasks (:attr:`Training.joint`)."""
    return tuple(name for file in _files() for name in getattr(file, "BY_TASKS", ()))


def training_of(pipeline: Any, sound: str | None = None) -> Training:
    """How the denoiser of a pipeline is called in training.

    Args:
        pipeline: a stock Diffusers pipeline; subclasses count as the class they come from. Only configurations are
            read, so parts without weights do.
        sound: kind of spectrogram the sound's autoencoder reads, as the model's ``genkit.json`` says; see
            :func:`genkit.families.sound_features.features_of`.

    Raises:
        UnsupportedError: a class without a record, or a checkpoint of it that needs what is not known here; says what
            is missing.
    """
    name = diffusers_class(pipeline) or type(pipeline).__name__
    build = _builders().get(name)
    if build is None:
        raise UnsupportedError(f"{name} cannot be trained: {_reason(name)}. Trained: {', '.join(trainable())}")
    found = build(pipeline, sound)
    if found.untrainable:
        raise UnsupportedError(found.untrainable)
    return found


def called(pipeline: Any, inpaints: bool = False) -> Training:
    """How the denoiser of a pipeline is called, also where training it would make no sense.

    Pipelines of the same denoiser that start from a picture or repaint a part count as the one from text.

    Args:
        pipeline: a stock Diffusers pipeline.
        inpaints: whether the caller gives mask and masked picture to a denoiser that reads them.

    Raises:
        UnsupportedError: a class without a record, or a checkpoint of it that needs what is not known here.
    """
    name = diffusers_class(pipeline) or type(pipeline).__name__
    build = _builder(name, inpaints)
    if build is None:
        raise UnsupportedError(f"{name} cannot be used here: {_reason(name)}. Known: {', '.join(trainable())}")
    return build(pipeline, None)


def why_not_called(name: str, inpaints: bool = False) -> str | None:
    """Why :func:`called` refuses a pipeline class; None for one that it knows."""
    return None if _builder(name, inpaints) is not None else _reason(name)


def made_to_inpaint(name: str) -> bool:
    """Whether all checkpoints of a pipeline class read a mask and a masked picture."""
    return name in _inpainting()


def _inpainting() -> dict[str, Builder]:
    return {name: build for file in _files() for name, build in getattr(file, "INPAINTING", {}).items()}


def _builder(name: str, inpaints: bool = False) -> Builder | None:
    if made_to_inpaint(name):
        return _inpainting()[name] if inpaints else None
    alike = {other: plain for file in _files() for other, plain in getattr(file, "ALIKE", {}).items()}
    plain = alike.get(name, _VARIANT.sub("", name))
    return _builders().get(name, _builders().get(plain))


def _reason(name: str) -> str:
    for file in _files():
        if name in getattr(file, "REFUSED", {}):
            return file.REFUSED[name]
    facts = facts_of(name)
    parts = [words for field, words in _NEEDED.items() if facts is None or getattr(facts, field) is None]
    return f"genkit does not know {', '.join([*parts, 'how its denoiser is called'])}"
