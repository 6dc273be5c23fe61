"""Samples on the way: what the adapter makes of fixed prompts and seeds, as files and as one sheet.

A sample is what ``genkit generate`` would make of the prompt with the weights of the moment: the same checks, the same
attention with its whole schedule, the same writers. Nothing of it reaches the training: what the loop does around it
(generators, averages, evaluation mode, no gradients) is in :meth:`genkit.training.engine.loop._Run.look`, scheduler,
schedule of the patch and the pipeline's methods are put back here.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from genkit.errors import GenkitError, UnsupportedError, UsageError, escaped, shortened
from genkit.media import read_image, resized, write_mp4
from genkit.media.atomic import Files
from genkit.media.formats import dump
from genkit.media.images import write_png
from genkit.patching import PatchHandle, patch
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.model import Model
from genkit.pipelines.outputs import collect
from genkit.pipelines.resolve import Draft, Request
from genkit.pipelines.session import Result, Session
from genkit.pipelines.session import Run as Call
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made
from genkit.pipelines.text import slug
from genkit.training.data.folder.cuts import Cut
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.sheet import ROW, SHEET, row_of, sheet_of, strip_of
from genkit.training.lora.texts import Texts

SAMPLES = "samples"
#: The argument by which pipelines take a picture to go on from or to follow.
PICTURE = "image"
#: Limits of a model's size, which training may go beyond.
_SIZES = ("min_height", "max_height", "min_width", "max_width", "max_frames")
_WORD = re.compile(r"\w+")
_LESS = "a smaller --validation-resolution or fewer --validation-num-frames, or leave --validation-prompts out"


@dataclasses.dataclass(frozen=True)
class Asked:
    """One sample of every step.

    Args:
        settings: prompt, seed and all the rest, as ``genkit generate`` takes them.
        name: of its file without ending: ``01-a-red-circle``.
        title: over its column of the sheet.
        given: further arguments of the pipeline's call.
    """

    settings: Any
    name: str
    title: str
    given: dict[str, Any]


class ValidationSamples:
    """The samples of a run. The first process alone makes them.

    Args:
        settings: of the run, with ``validation_prompts``.
        model: of the run.
        pipeline: with weights, before the adapter and the patch are in.
        cuts: the run's samples of data; the largest one tells size and frame rate where settings do not.
        told: called with what the user should know, one line each.
        live: whether prompts are encoded anew every time, as words in them are learned.

    Raises:
        UsageError, UnsupportedError: what ``genkit generate`` would refuse, before anything is trained.
    """

    def __init__(
        self,
        settings: LoraSettings,
        model: Model,
        pipeline: Any,
        cuts: Sequence[Cut],
        told: Callable[[str], None],
        live: bool = False,
    ):
        self.folder = Path(settings.output) / SAMPLES
        self.told, self.pipeline = told, pipeline
        request, self.asked = ask(settings, model, pipeline.device, cuts)
        for each in self.asked:
            for line in (*request.notes, *request.read(each.settings).told):
                told(f"validation samples: {line}")
        task = dataclasses.replace(request.task, run=self._made)
        self.session = Session(dataclasses.replace(request, task=task), pipeline=pipeline)
        self.texts = Texts(pipeline, live)
        self._given: dict[str, Any] = {}

    def encode(self) -> None:
        """Encode the prompts, and let go of the text encoders, which nothing needs any more.

        Every call is made as far as its first use of a denoiser, so that what a pipeline refuses is known, too.
        """
        with self.texts.kept(), torch.no_grad():
            for each in self.asked:
                self.texts.reach_denoiser(lambda each=each: self._one(each))
        self.texts.release()

    def show(self, step: int, module: nn.Module, handle: PatchHandle | None) -> dict[str, np.ndarray]:
        """Make the samples of a step, and tell a failure.

        A failure before the first step ends the run: nothing is lost, and whoever asked for samples learns at once
        that there are none. Later the training is worth more than its samples: they are left out for this time.

        Args:
            step: number of steps done.
            module: what is trained, holding the weights to be shown.
            handle: the patch in force.

        Returns:
            A picture (H, W, 3) uint8 of every sample by its name: a few frames of a clip side by side.
        """
        if isinstance(module, FSDPModule):
            raise UnsupportedError(
                "--validation-prompts: weights in shards (FSDP) are not sampled from; leave it out, or train without "
                "FSDP"
            )
        try:
            return self.render(step, handle)
        except Exception as error:  # whatever a pipeline may raise must not take hours of training with it
            if step == 0:
                raise _advised(error) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            reason = shortened(escaped(str(error)), 300) or type(error).__name__
            self.told(f"no samples after step {step}, training goes on: {reason}. For the next ones give {_LESS}")
            return {}

    def render(self, step: int, handle: PatchHandle | None) -> dict[str, np.ndarray]:
        """Write the samples of a step into ``OUTPUT/samples/step-N``, all or none, and the sheet anew."""
        strips = {}
        with self._as_generated(handle), Files() as files:
            staged = files.new(self.folder / f"step-{step}")
            staged.mkdir()
            for each in self.asked:
                result = self._one(each)
                _write(staged, each, result, step)
                strips[f"sample {each.name}"] = strip_of(result.frames)
            titles = [each.title for each in self.asked]
            row = row_of(list(strips.values()))
            write_png(staged / ROW, row, comment=dump({"columns": titles}))
            page = sheet_of(self.folder, titles, {step: row})
            write_png(files.new(self.folder / SHEET), page)
        return strips

    def _one(self, each: Asked) -> Result:
        self._given = each.given
        return self.session.run(each.settings)

    def _made(self, call: Call) -> Made:
        """What takes the place of a task's own run: the pipeline is patched already."""
        return collect(call, call.call(call.pipeline, **self._given), None)

    @contextmanager
    def _as_generated(self, handle: PatchHandle | None) -> Iterator[None]:
        """The pipeline as ``genkit generate`` would have it: a scheduler of its own, the whole schedule of the patch,
        and the patch on the other denoisers too."""
        pipeline, attention = self.pipeline, self.session.request.attention
        scheduler = pipeline.scheduler
        with ExitStack() as stack:
            stack.callback(setattr, pipeline, "scheduler", scheduler)
            pipeline.scheduler = copy.deepcopy(scheduler)
            stack.callback(_back_to_main_memory, pipeline)
            stack.enter_context(self.texts.kept())
            if attention is not None and handle is not None:
                stack.enter_context(handle.scheduled([part.applied for part in attention.parts]))
                for other in _others(pipeline, handle):
                    stack.enter_context(patch(other, attention.parts, backend=attention.backend))
            yield


def _back_to_main_memory(pipeline: Any) -> None:
    """Parts that wait there between their calls (``--offload``) do not keep the device's memory in training."""
    from accelerate.hooks import CpuOffload

    for part in pipeline.components.values():
        hook = getattr(part, "_hf_hook", None)
        if isinstance(hook, CpuOffload):
            hook.init_hook(part)


def _others(pipeline: Any, handle: PatchHandle) -> list[Any]:
    """Denoisers of a pipeline besides the patched one."""
    from genkit.patching.targets import find_denoisers

    patched = {id(model) for model in handle.models}
    return [model for model in (each.model() for each in find_denoisers(pipeline)) if id(model) not in patched]


def ask(settings: LoraSettings, model: Model, device: torch.device, cuts: Sequence[Cut]) -> tuple[Request, list[Asked]]:
    """What is sampled, checked without weights; see :class:`ValidationSamples`."""
    request = _request(settings, model, device, cuts)
    asked = _asked(settings, request)
    for each in asked:
        request.read(each.settings)
    return request, asked


def _request(settings: LoraSettings, model: Model, device: torch.device, cuts: Sequence[Cut]) -> Request:
    """The request of the first sample, checked as ``genkit generate`` checks one."""
    largest = max(cuts, key=lambda cut: (cut.bucket.frames * cut.bucket.height * cut.bucket.width, cut.bucket))
    height, width = largest.bucket.height, largest.bucket.width
    if settings.validation_resolution is not None:
        height, width = _sides(settings.validation_resolution)
    values: dict[str, Any] = {
        "model": settings.model, "parts_from": settings.parts_from,
        "prompt": settings.validation_prompts[0], "seed": settings.validation_seed,
        "steps": settings.validation_num_inference_steps, "guidance_scale": settings.validation_guidance_scale,
        "negative_prompt": settings.validation_negative_prompt, "height": height, "width": width,
        "device": str(device), "dtype": settings.dtype, "backend": settings.backend,
        "attention": settings.attention, "schedule": settings.schedule, "recipe": settings.recipe,
        "attention_args": settings.attention_args or None,
    }  # fmt: skip
    if model.kind is not IMAGE:
        values["num_frames"] = settings.validation_num_frames or largest.bucket.frames
        values["fps"] = None if largest.fps is None else str(largest.fps)
    elif settings.validation_num_frames is not None:
        raise UsageError(f"--validation-num-frames: {model.class_name} makes pictures; leave it out")
    if "max_sequence_length" in model.accepted:
        values["max_sequence_length"] = settings.max_sequence_length
    given = {name: value for name, value in values.items() if value is not None}
    try:
        draft = Draft(GenerateSettings.from_mappings(("validation", given)), _inputs(settings, model))
        # The size is one that is trained at or asked for: what the untrained model was made for does not bind it.
        limits = {name: value for name, value in model.sidecar.limits.items() if name not in _SIZES}
        draft.model = dataclasses.replace(model, sidecar=dataclasses.replace(model.sidecar, limits=limits))
        # Words of the captions are what the run teaches, not slips of the pen.
        draft.taught |= {word.lower() for cut in cuts for word in _WORD.findall(cut.item.caption)}
        draft.fill()
        return draft.close()
    except GenkitError as error:
        raise type(error)(f"validation samples: {error}") from error


def _inputs(settings: LoraSettings, model: Model) -> tuple[str, ...]:
    """The arguments that samples are given beside the prompt."""
    if settings.validation_images and PICTURE not in model.accepted:
        raise UsageError(f"--validation-images: {model.class_name} takes no picture; leave it out")
    try:
        model.check_inputs("train lora", (PICTURE,) if settings.validation_images else ())
    except UnsupportedError as error:
        if settings.validation_images:
            raise
        raise UsageError(
            f"--validation-prompts: {model.class_name} needs a picture for every prompt; give --validation-images, or "
            "leave the prompts out"
        ) from error
    return (PICTURE,) if settings.validation_images else ()


def _asked(settings: LoraSettings, request: Request) -> list[Asked]:
    """Every prompt with every seed."""
    found: list[Asked] = []
    base = request.settings
    several = settings.num_validation_samples > 1
    for index, prompt in enumerate(settings.validation_prompts):
        given = {}
        if settings.validation_images:
            given[PICTURE] = _picture(settings.validation_images[index], base.height, base.width)
        for offset in range(settings.num_validation_samples):
            seed = base.seed + offset
            name = f"{len(found) + 1:02d}-{slug(prompt)}" + (f"-{seed}" if several else "")
            title = f"{prompt} ({seed})" if several else prompt
            found.append(Asked(base.replace(prompt=prompt, seed=seed), name, title, given))
    return found


def _picture(path: str, height: int, width: int) -> Any:
    """A file as a picture of the samples' size: it covers it, and is cut in the middle, as training data is."""
    from PIL import Image

    frame = read_image(Path(path).expanduser(), 1, what="--validation-images").frames[:1]
    scale = max(height / frame.shape[1], width / frame.shape[2])
    inner = [max(round(side * scale), wanted) for side, wanted in zip(frame.shape[1:3], (height, width), strict=True)]
    covering = resized(frame, *inner)[0]
    top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
    return Image.fromarray(covering[top : top + height, left : left + width])


def _sides(text: str) -> tuple[int, int]:
    """Height and width of a size: 480x832, or one side of a square."""
    sides = [int(part) for part in text.split("x")]
    return sides[0], sides[-1]


def _write(folder: Path, each: Asked, result: Result, step: int) -> None:
    """One sample as a file that says what it is."""
    comment = dump({"sample": {"step": step, "prompt": each.settings.prompt, "seed": each.settings.seed}})
    if len(result.frames) == 1:
        write_png(folder / f"{each.name}.png", result.frames[0], comment=comment)
        return
    write_mp4(
        folder / f"{each.name}.mp4", result.frames, result.fps, audio=result.audio, sample_rate=result.sample_rate,
        comment=comment,
    )  # fmt: skip


def _advised(error: Exception) -> Exception:
    """An error before the first step, with what to do about it."""
    if not isinstance(error, GenkitError):
        return error
    return type(error)(f"validation samples before the first step: {error}. Nothing is trained yet: give {_LESS}")
