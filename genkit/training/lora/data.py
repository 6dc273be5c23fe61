"""A run's folders as samples for its model."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.training.base import AUDIO, Training
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.model import Model
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.rules import ModelRule, folder_rules
from genkit.training.data.folder.samples import FolderSamples
from genkit.training.engine.loop import process_count
from genkit.training.lora.settings import LoraSettings

CACHE = "cache"


def model_rule(model: Model, training: Training) -> ModelRule:
    """What a model takes, from its configurations, its ``genkit.json`` and its family's record.

    Raises:
        UnsupportedError: a model whose sizes genkit does not know.
    """
    if model.rule is None:
        raise UnsupportedError(f"{model.class_name} cannot be trained: genkit does not know which sizes it takes")
    defaults, known = model.sidecar.defaults, model.accepted
    own = {
        name: defaults.get(name) or (known[name].default if name in known else None)
        for name in ("height", "num_frames")
    }
    if own["height"] is None:
        raise UsageError(f"--resolution: {model.class_name} tells no usual size; give one, such as 512")
    image = model.kind is IMAGE
    fps = None if image else Fraction(str(defaults.get("fps") or model.fps))
    return ModelRule(
        model.rule,
        int(own["height"]),
        1 if image else int(own["num_frames"] or 1),
        fps,
        sound=AUDIO in training.streams,
        needs=training.needs,
        takes=training.takes,
    )


def read_data(settings: LoraSettings, model: Model, training: Training) -> FolderData:
    """The folders, read as far as it goes without the model's weights."""
    return FolderData.read(folder_rules(settings.data, settings, model_rule(model, training)), settings.held_out)


def samples_of(
    settings: LoraSettings,
    data: FolderData,
    model: Model,
    pipeline: Any,
    training: Training,
) -> FolderSamples:
    """The samples of a run, not encoded yet."""
    cache = settings.cache_dir or Path(settings.output) / CACHE
    return FolderSamples(
        data,
        pipeline,
        training,
        Path(cache).expanduser(),
        batch_size=settings.train_batch_size,
        seed=settings.seed,
        processes=process_count(),
        slots=slots_of(settings, model),
    )


def slots_of(settings: LoraSettings, model: Model) -> int | None:
    """Text tokens of a caption; None for the family's own number."""
    return settings.max_sequence_length or model.sidecar.defaults.get("max_sequence_length")
