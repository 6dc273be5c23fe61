"""A run's folders as samples for its model."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError, UsageError, counted
from genkit.families.training.base import AUDIO, Training
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.model import Model
from genkit.reading.files import place
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.rules import ModelRule, folder_rules
from genkit.training.data.folder.samples import FolderSamples
from genkit.training.data.folder.told import listed
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
    image = model.kind is IMAGE
    fps = None if image else Fraction(str(defaults.get("fps") or model.fps))
    return ModelRule(
        model.rule,
        None if own["height"] is None else int(own["height"]),
        1 if image else int(own["num_frames"] or 1),
        fps,
        sound=AUDIO in training.streams,
        needs=training.needs,
        takes=training.takes,
    )


def read_data(
    settings: LoraSettings,
    model: Model,
    training: Training,
    progress: Callable[[int, int, str], None] | None = None,
) -> FolderData:
    """The folders, read as far as it goes without the model's weights.

    Args:
        progress: called with (done, all, file) as files are read.

    Raises:
        UsageError: files that cannot be used, or no sound in any clip for a model with sound where nobody asked for
            that.
    """
    rules = folder_rules(settings.data, settings, model_rule(model, training))
    data = FolderData.read(rules, settings.held_out, progress)
    silent = AUDIO in training.streams and not any(cut.sound for cut in data.every)
    if silent and not settings.asked("missing_audio") and all(each.missing_audio is None for each in settings.data):
        names = list(dict.fromkeys(place(cut.item.path.name) for cut in data.every))
        raise UsageError(
            f"{model.class_name} makes sound, and none of the {counted(len(names), 'file')} has any: {listed(names)}; "
            "--missing-audio video trains the video alone, --missing-audio silence silence"
        )
    return data


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
    return settings.max_sequence_length or slots_of_model(model)


def slots_of_model(model: Model) -> int | None:
    """Text tokens that a model's ``genkit.json`` tells; None where it tells none."""
    return model.sidecar.defaults.get("max_sequence_length")
