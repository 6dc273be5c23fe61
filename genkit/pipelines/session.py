"""``genkit generate`` as a library: settings in, frames out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import GenkitError, UnsupportedError, UsageError
from genkit.media import check_output, enlarge, numbered, write_media
from genkit.pipelines import attention
from genkit.pipelines.guidance import argument_names
from genkit.pipelines.kinds import IMAGE, accepted
from genkit.pipelines.load import apply_loras, load, parse_lora
from genkit.pipelines.outputs import fit_sound, to_frames, to_sound
from genkit.pipelines.prompts import check_prompt
from genkit.pipelines.record import build_record, made_with
from genkit.pipelines.resolve import Plan, configs_of, plan
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.references import pictures as references
from genkit.pipelines.text import slug

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """One generated video or image.

    Args:
        frames: uint8 (T, H, W, 3) as the model made them; T is 1 for an image. ``settings.enlarge`` acts when writing.
        fps: exact frames per second, None for an image.
        seconds: wall time of the pipeline call, loading excluded.
        settings: the settings with every open value filled in.
        record: what is stored inside an output file.
        report: what the attention patch really did, or None without one.
        audio: float32 samples (S, channels) or None.
        sample_rate: of ``audio``.
    """

    frames: np.ndarray
    fps: Fraction | None
    seconds: float
    settings: GenerateSettings
    record: dict[str, Any]
    report: dict[str, Any] | None = None
    audio: np.ndarray | None = None
    sample_rate: int | None = None

    def write(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the result with its settings; see :func:`genkit.media.write_media`."""
        notes = {"seconds": round(self.seconds, 3), "attention": self.report}
        return write_media(
            path, enlarge(self.frames, self.settings.enlarge), self.fps, settings=self.record, notes=notes,
            audio=self.audio, sample_rate=self.sample_rate, force=force,
        )  # fmt: skip


@dataclass
class Session:
    """A model that serves several runs. The weights are read by :meth:`load` or at the first run.

    Args:
        plan: a checked request, from :func:`genkit.pipelines.resolve.plan`.
        warnings: what the user should know, one line each; filled while running.
        pipeline: the Diffusers pipeline, None before :meth:`load`.
        made: versions, machine and model of this session, see :func:`genkit.pipelines.record.made_with`.
    """

    plan: Plan
    warnings: list[str] = field(default_factory=list)
    pipeline: Any = None
    made: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Read the weights and the LoRA files; does nothing the second time."""
        if self.pipeline is not None:
            return
        given = self.plan.settings
        pipeline = load(
            self.plan.folder, given.dtype, given.device,
            offload=given.offload, vae_tiling=given.vae_tiling, vae_slicing=given.vae_slicing,
        )  # fmt: skip
        apply_loras(pipeline, given.lora)
        loras = [parse_lora(text)[0] for text in given.lora]
        self.made = made_with(self.plan.folder, self.plan.pipeline_class.__name__, given.device, loras)
        if self.plan.given is not None:
            self.made["given_fingerprint"] = self.plan.given.fingerprint()
        if self.plan.references:
            self.made["reference_fingerprints"] = [each.fingerprint() for each in self.plan.references]
        self.pipeline = pipeline

    def check_prompt(self, settings: GenerateSettings) -> tuple[str, str | None, list[str]]:
        """The prompts as the model will read them; see :func:`genkit.pipelines.prompts.check_prompt`."""
        return check_prompt(self.pipeline, settings, self.plan.sidecar.limits.get("max_prompt_tokens"))

    def run(self, settings: GenerateSettings | None = None, progress: Progress | None = None) -> Result:
        """Generate one output.

        Args:
            settings: a variation of the plan's settings in prompt or seed; the model-related fields must be the same.
            progress: called as ``progress("step", done, total)`` after each denoising step and ``progress("decode",
            ...)``.

        Raises:
            UsageError: the prompt is too long, the schedule does not fit, or the pipeline refuses an argument.
            UnsupportedError: the method cannot serve this model, or the memory does not suffice.
            ArtifactError: the model returned NaN.
        """
        settings = settings or self.plan.settings
        self.load()
        settings = references.settle(attention.settle(self.pipeline, settings), self.pipeline)
        prompt, negative, cut = self.check_prompt(settings)
        self.warnings += [line for line in (*self.plan.notes, *cut) if line not in self.warnings]
        arguments = self._arguments(settings, prompt, negative, progress)
        seconds = -time.perf_counter()
        with _plain_errors(settings):
            if settings.upscale > 1:
                output, report = self._upscaled(arguments, settings, progress)
            else:
                with attention.applied(self.pipeline, settings) as patch:
                    references.record(patch, self.pipeline, self.plan.references, settings)
                    output = self._call(self._runner(), arguments, settings)
                report = attention.report_of(patch)
        seconds += time.perf_counter()
        self.warnings += [line for line in attention.remarks(report, settings) if line not in self.warnings]
        fps = None if self.plan.kind is IMAGE else Fraction(settings.fps)
        frames, audio, rate = self._results(output, fps)
        sizes = {"height": frames.shape[1], "width": frames.shape[2]}
        known = accepted(self.plan.pipeline_class)
        told = {name: size for name, size in sizes.items() if name in known and getattr(settings, name) is None}
        stored = settings.replace(num_videos=1, **told)
        return Result(frames, fps, seconds, stored, build_record(stored, self.made), report, audio, rate)

    def _runner(self) -> Callable[..., Any]:
        """What is called with the pipeline's arguments: the pipeline, or the loop for a given sound or video."""
        if self.plan.given is None:
            return self.pipeline
        from genkit.pipelines.tasks.audio_video.complete import complete
        from genkit.pipelines.tasks.audio_video.sound_features import features_of

        return partial(complete, self.pipeline, self.plan.given, features_of(self.pipeline, self.plan.sidecar.sound))

    def _results(self, output: Any, fps: Fraction | None) -> tuple[np.ndarray, np.ndarray | None, int | None]:
        """Frames, sound and its rate; what was given comes back untouched, a sound that was made as long as its
        video."""
        given = self.plan.given
        frames = to_frames(output, self.plan.kind) if given is None or given.frames is None else given.frames
        if given is not None and given.sound is not None:
            return frames, given.sound, given.rate
        audio, rate = to_sound(output, self.pipeline, self.plan.kind)
        return frames, None if audio is None else fit_sound(audio, rate, len(frames), fps), rate

    def _upscaled(
        self, arguments: dict[str, Any], settings: GenerateSettings, progress: Progress | None
    ) -> tuple[Any, dict[str, Any] | None]:
        """The run at the model's size and the patched second pass at the larger one."""
        from genkit.pipelines.tasks.high_resolution.second_pass import high_resolution

        method, schedule = attention.build(settings) or (None, None)
        given = {key: value for key, value in arguments.items() if key not in ("callback_on_step_end", "output_type")}
        second = {
            "upscale": settings.upscale, "method": method, "schedule": schedule, "backend": settings.backend,
            "strength": settings.upscale_strength, "flow_shift": settings.upscale_shift, "progress": progress,
        }  # fmt: skip
        output = self._call(partial(high_resolution, self.pipeline), {**given, **second}, settings)
        return output, None if output.report is None else attention.plain(output.report.to_dict())

    def _call(self, function: Callable[..., Any], arguments: dict[str, Any], settings: GenerateSettings) -> Any:
        import torch

        # Schedulers and methods may draw from the global generator; it is seeded here and left as it was.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # casting NaN frames: refused below with a reason
            torch.manual_seed(settings.seed)
            return function(**arguments, generator=torch.Generator("cpu").manual_seed(settings.seed))

    def _arguments(
        self, settings: GenerateSettings, prompt: str, negative: str | None, progress: Progress | None
    ) -> dict[str, Any]:
        known = accepted(self.plan.pipeline_class)
        values: dict[str, Any] = {"prompt": prompt, "output_type": "np", **self.plan.sidecar.call}
        for name, targets in argument_names(self.plan.pipeline_class, configs_of(self.plan.folder)).items():
            value = negative if name == "negative_prompt" else getattr(settings, name)
            target = next((target for target in targets if target in known), None)
            if target is not None and value is not None:
                values[target] = float(Fraction(value)) if name == "fps" else value
        if progress is not None and "callback_on_step_end" in known:
            values["callback_on_step_end"] = _step_callback(progress, settings.steps)
        return values


def _step_callback(progress: Progress, steps: int | None) -> Callable:
    def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        total = getattr(pipeline, "num_timesteps", None) or steps or step + 1
        progress("step", step + 1, total)
        if step + 1 >= total:
            progress("decode", 0, 1)
        return tensors

    return after_step


def run(settings: GenerateSettings, progress: Progress | None = None) -> Result:
    """Generate one output: check, load, run.

    Example:
        >>> result = run(GenerateSettings(prompt="a red circle moves right", seed=1))  # doctest: +SKIP
        >>> result.write("circle.mp4")  # doctest: +SKIP
    """
    return Session(plan(settings)).run(progress=progress)


def expand(plan: Plan, prompts: list[str]) -> list[tuple[GenerateSettings, Path]]:
    """All runs of a request with their output names: every prompt with ``num_videos`` seeds, numbered when there are
    several."""
    base = plan.settings
    count = len(prompts) * base.num_videos
    jobs = []
    for index, prompt in enumerate(prompts):
        for offset in range(base.num_videos):
            job = base.replace(prompt=prompt, seed=base.seed + offset, num_videos=1)
            still = plan.kind is IMAGE or job.num_frames == 1
            if base.output is not None:
                output = numbered(base.output, index * base.num_videos + offset, count, still=still)
            else:
                output = Path(f"{slug(prompt)}-{job.seed}{'.png' if still else plan.kind.suffix}")
            jobs.append((job, output))
    names = [output for _, output in jobs]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two prompts would write {repeated}; give --output, its name is then numbered")
    return jobs


def check_outputs(outputs: list[Path], *, force: bool) -> None:
    """Refuse a batch before it starts when any of its outputs exists or cannot be written."""
    for output in outputs:
        check_output(output, force=force)


@contextmanager
def _plain_errors(settings: GenerateSettings) -> Iterator[None]:
    """Turn what pipelines raise about arguments and memory into genkit's errors; anything else passes."""
    import torch

    try:
        yield
    except GenkitError:
        raise
    except torch.OutOfMemoryError as error:
        raise UnsupportedError(
            f"the memory of {settings.device} does not suffice for {settings.width}x{settings.height}; "
            "try --offload model, --vae-tiling, --dtype bfloat16, fewer frames or a smaller size"
        ) from error
    except MemoryError as error:
        raise UnsupportedError("the main memory does not suffice; try fewer frames or a smaller size") from error
    except (ValueError, TypeError) as error:
        if not _from_check_inputs(error):
            raise
        raise UsageError(f"the pipeline refuses an argument: {str(error).strip().splitlines()[0]}") from error
    except RuntimeError as error:
        if "alloc" not in str(error) or "memory" not in str(error):
            raise
        raise UnsupportedError("the main memory does not suffice; try fewer frames or a smaller size") from error


def _from_check_inputs(error: BaseException) -> bool:
    """Whether an exception was raised by a pipeline's own argument check rather than by a fault inside it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "check_inputs":
            return True
        trace = trace.tb_next
    return False
