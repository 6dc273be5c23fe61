"""What is refused of a LoRA run's settings before anything heavy is looked at: places that cannot be written, and
settings that change nothing for this model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genkit.errors import UsageError, counted, explain
from genkit.families.training.base import AUDIO, Training
from genkit.lora.files import NAMED
from genkit.lora.mixture.files import ROUTER
from genkit.media.atomic import check_writable
from genkit.pipelines.model import Model
from genkit.pipelines.request import flag
from genkit.reading.files import place, user_path
from genkit.training.engine.journal import LOG
from genkit.training.engine.keep import LATEST, Numbered
from genkit.training.engine.loop import process_rank
from genkit.training.lora.data import CACHE, slots_of_model
from genkit.training.lora.samples import SAMPLES
from genkit.training.lora.settings import LoraSettings

#: What a run writes into its folder besides checkpoints.
_OURS = (CACHE, LOG, SAMPLES, NAMED, ROUTER)
#: Text tokens that may be asked for, as a multiple of the usual number, where the tokenizer itself has no limit.
_MOST_SLOTS = 8


def named_file(settings: LoraSettings) -> str:
    """Name of the file that a run makes."""
    return ROUTER if settings.mix else NAMED


def check_output(settings: LoraSettings) -> None:
    """Refuse an output folder that cannot be written, holds a finished LoRA, or other files than a run leaves."""
    user_path(settings.output, "--output")  # tells of names that no folder can have
    output = Path(settings.output)
    cache = None if settings.cache_dir is None else Path(settings.cache_dir)
    for name, folder in (("--output", output), ("--cache-dir", cache)):
        if folder is None:
            continue
        _check_apart(name, folder, settings)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} {place(folder)} is a file; give a folder")
        if process_rank() == 0:
            check_writable(folder, name)
    check_finished(output, named_file(settings), settings.resume_from_checkpoint)


def check_finished(output: Path, result: str, resumed: str | None) -> None:
    """Refuse a folder that holds a finished run, one that could go on, or other files than a run leaves.

    Args:
        output: the folder.
        result: the file that a run makes in it.
        resumed: the checkpoint that this run goes on from.
    """
    if not output.is_dir():
        return
    if resumed is None and (output / result).exists():
        raise UsageError(
            f"--output {place(output)} holds {result} already; give another folder, or go on with "
            f"--resume-from-checkpoint {LATEST}"
        )
    earlier = Numbered(output).all()
    if resumed is None and earlier:
        raise UsageError(
            f"--output {place(output)} holds {earlier[-1].name} of an earlier run; --resume-from-checkpoint {LATEST} "
            "goes on with it, another folder begins afresh"
        )
    names = {path.name for path in output.iterdir()}
    if names and not _begun(output):
        shown = ", ".join(sorted(names)[:3])
        raise UsageError(
            f"--output {place(output)} holds other files ({place(shown)}) and nothing of a LoRA run; give an empty or "
            "a new folder"
        )


def _begun(output: Path) -> bool:
    """Whether a folder holds anything that a run leaves, one that was killed before its first checkpoint too."""
    return any((output / name).exists() for name in _OURS) or bool(Numbered(output).all())


def _check_apart(name: str, folder: Path, settings: LoraSettings) -> None:
    """Refuse a folder inside the data: what a run writes there would be data of the next one."""
    for source in settings.data:
        data, given = Path(source.path).expanduser().resolve(), folder.resolve()
        if not data.is_dir() or not given.is_relative_to(data):
            continue
        # Hidden folders are passed over when the data is read.
        if not any(part.startswith(".") for part in given.relative_to(data).parts):
            raise UsageError(
                f"{name} {place(folder)} is in the data folder {place(source.path)}, whose files are trained on; give "
                "a folder beside it"
            )


def check_login(settings: Any) -> None:
    """Refuse a push to the hub without an account, before anything is trained."""
    if not settings.push_to_hub:
        return
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UsageError("--push-to-hub needs an account: log in with 'hf auth login', or leave it out")


def check_effects(settings: LoraSettings, model: Model, training: Training, pipeline: Any, component: str) -> None:
    """Refuse settings that have no effect on this model."""
    if AUDIO not in training.streams:
        for name in ("audio_weight", "missing_audio"):
            if settings.asked(name) and getattr(settings, name) != type(settings).__dataclass_fields__[name].default:
                raise UsageError(f"{flag(name)} has no effect: {model.class_name} makes no sound; leave it out")
    if settings.guidance is not None and not getattr(pipeline, component).config.get("guidance_embeds"):
        raise UsageError(
            f"--guidance has no effect: the denoiser of {settings.model} is told no guidance scale (guidance_embeds); "
            "leave it out"
        )
    slots = settings.max_sequence_length
    if slots is None:
        return
    if not training.slots_chosen:
        raise UsageError(
            f"--max-sequence-length has no effect: {model.class_name} always reads "
            f"{counted(training.slots, 'token')}; leave it "
            "out"
        )
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
    longest = max((part.model_max_length for part in tokenizers), default=0)
    most = max(training.slots, slots_of_model(model) or 0, min(longest, _MOST_SLOTS * training.slots))
    if slots > most:
        raise UsageError(explain("--max-sequence-length", slots, f"up to {most}; {training.slots} are usual"))
