"""Settings of a run that learns words as what they mean, before and after the model's weights are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genkit.errors import UsageError, counted
from genkit.families.training.base import Training
from genkit.lora.words import tokenizer_of
from genkit.pipelines.model import Model
from genkit.reading.files import place
from genkit.training.data.folder.data import FolderData
from genkit.training.engine.journal import counting
from genkit.training.engine.loop import process_count, process_rank
from genkit.training.lora.data import CACHE, slots_of
from genkit.training.lora.groups import ACTIVATIONS
from genkit.training.lora.made import MadeSamples
from genkit.training.lora.words.prior import prior_images, prior_request
from genkit.training.lora.words.subjects import Subjects, check_new, positions_of, words_record
from genkit.training.lora.words.table import WordTable
from genkit.training.lora.words.task import Taught, WordOptions, WordTask

if TYPE_CHECKING:
    from genkit.training.lora.plan import LoraPlan

#: Parameters that have the words' learning rate.
ROWS = "table.rows"


def subjects_of(
    settings: Any, model: Model, pipeline: Any, training: Training, data: FolderData, device: torch.device
) -> Subjects | None:
    """The subjects of a run's picture; None for a run that learns no words.

    Raises:
        UsageError: more than one picture, a caption without a subject, words that are none to be learned, prompts of
            the prior that the model does not take.
        UnsupportedError: a model that is not known to learn words, or several processes.
    """
    if not settings.learn_words:
        return None
    record = words_record(training, model.class_name)
    if settings.asked("caption_dropout") and settings.caption_dropout:
        raise UsageError(
            "--caption-dropout does not go with --learn-words: every step's prompt has a word; leave it out"
        )
    if process_count() > 1:
        raise UsageError("--learn-words trains on one picture in one process; start it without accelerate launch")
    if len(data.every) != 1:
        names = ", ".join(place(cut.item.path.name) for cut in data.every[:3])
        raise UsageError(
            "--learn-words learns from one picture at one --resolution, the data come to "
            f"{counted(len(data.every), 'sample')} "
            f"({names}); give a folder with one picture, and one size"
        )
    (cut,) = data.every
    subjects = Subjects.of(settings.learn_words, cut.item.caption)
    check_new(pipeline, record, subjects)
    positions_of(pipeline, record, subjects, slots_of(settings, model))
    if settings.prior_weight:
        prior_request(settings, model, device, cut.bucket)
    return subjects


def word_factors(settings: Any) -> dict[str, float] | None:
    """The multiple of the learning rate that the words' embeddings get; None for a run that learns none."""
    if not settings.learn_words:
        return None
    own = settings.word_learning_rate
    return {ROWS: 1.0 if own is None else own / settings.learning_rate}


def made_before(plan: LoraPlan, pipeline: Any) -> MadeSamples | None:
    """The pictures of the prior, made by the model as it is; None for a run without."""
    settings = plan.settings
    if not settings.prior_weight:
        return None
    cache = Path(settings.cache_dir or Path(settings.output) / CACHE).expanduser()
    shown = counting("genkit: making pictures of the prior:", process_rank() == 0)
    return prior_images(settings, plan.model, pipeline, plan.training, plan.largest, cache, shown)


def put_words(plan: LoraPlan, pipeline: Any) -> WordTable:
    """Teach a pipeline the new words; their embeddings are the table's."""
    record, subjects = words_record(plan.training, plan.model.class_name), _subjects(plan)
    starts = check_new(pipeline, record, subjects)
    encoder = getattr(pipeline, record.part)
    table = WordTable.of(encoder, starts).to(encoder.device)
    table.put_on(tokenizer_of(pipeline, record.part), encoder, subjects.words, starts)
    return table


def word_task(
    plan: LoraPlan, pipeline: Any, adapter: Any, table: WordTable | None = None, prior: MadeSamples | None = None
) -> WordTask:
    """The task of a run.

    Args:
        pipeline: with weights, the words put on; or without both, for shapes.
        adapter: on its denoiser.
        table: of the words; without one a table of the same shape is made.
        prior: see :func:`made_before`.
    """
    settings, subjects = plan.settings, _subjects(plan)
    record = words_record(plan.training, plan.model.class_name)
    slots = slots_of(settings, plan.model)
    if table is None:
        table = WordTable.of(getattr(pipeline, record.part), check_new(pipeline, record, subjects))
    size, factor = plan.largest, 2 * pipeline.vae_scale_factor
    taught = Taught(
        words=record,
        subjects=subjects,
        # The plan's tokenizers do not know the words yet.
        places=positions_of(plan.pipeline, record, subjects, slots),
        table=table,
        options=WordOptions(
            sampling=settings.word_sampling,
            attention_weight=settings.attention_loss_weight,
            threshold=settings.attention_threshold,
            update_steps=settings.mask_update_steps,
            ssim=settings.mask_ssim_threshold,
            prior_weight=settings.prior_weight,
        ),
        size=(-(-size.height // factor), -(-size.width // factor)),
        slots=slots or plan.training.slots,
        prior=prior,
    )
    offload = settings.offload == ACTIVATIONS
    return WordTask(pipeline, plan.training, adapter, plan.options, settings.seed, None, offload, taught=taught)


def _subjects(plan: LoraPlan) -> Subjects:
    assert plan.subjects is not None, "a plan that learns words has subjects"
    return plan.subjects
