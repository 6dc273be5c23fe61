"""A loaded model that serves the runs of a request, and ``genkit generate`` as a library: settings in, frames out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import GenkitError, UnsupportedError, UsageError, counted, said
from genkit.lora.load import apply_loras
from genkit.media import enlarge, write_media
from genkit.pipelines.cleaning import as_they_are
from genkit.pipelines.following import DECODE, STEP, Latents, Progress, Stop, stoppable
from genkit.pipelines.guidance import argument_names
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.load import load
from genkit.pipelines.quantise import finish, reading
from genkit.pipelines.record import build_record, made_with
from genkit.pipelines.request import Settings, flag
from genkit.pipelines.resolve import Request, resolve
from genkit.pipelines.settings import DrawSettings, LoadSettings, SizeSettings
from genkit.pipelines.words import weighed
from genkit.reading import file_digest

if TYPE_CHECKING:
    from genkit.control.rules import Reweight

#: What may differ among the runs of a session.
VARIES = ("prompt", "negative_prompt", "seed", "num_videos", "truncate_prompt", "output")
#: Settings that decide what is loaded, beside model, device and dtype.
LOADED = (
    "offload", "denoiser", "quantize", "vae_tiling", "vae_slicing", "lora", "lora_router", "lora_mask", "lora_layers",
    "lora_steps", "lora_partial", "flow_shift", "scheduler", "controlnet", "ip_adapter", "fast", "steps",
)  # fmt: skip


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
    settings: Any
    record: dict[str, Any]
    report: dict[str, Any] | None = None
    audio: np.ndarray | None = None
    sample_rate: int | None = None

    def write(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the result with its settings; see :func:`genkit.media.write_media`."""
        notes = {"seconds": round(self.seconds, 3), "attention": self.report}
        return write_media(
            path, enlarge(self.frames, getattr(self.settings, "enlarge", 1)), self.fps, settings=self.record,
            notes=notes, audio=self.audio, sample_rate=self.sample_rate, force=force,
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One output in the making: what a task's ``run`` gets.

    Args:
        request: the resolved request.
        pipeline: the loaded pipeline.
        settings: the request's, with the prompt and seed of this output.
        arguments: of the pipeline's call, without the generator.
        progress: called as ``progress("step", done, total)`` and ``progress("decode", 0, 1)``; None for nobody.
        latents: called with the latents after each step; None for nobody. A task that steps by itself calls
            :meth:`step`, which tells both.
        rules: of the weights in its prompts, of tasks that put them on the model themselves.
        prior: the loaded pipeline that makes prompts of pictures; None without.
        turn: called before every chunk of a stream with the :class:`genkit.streaming.Stream`; None for nobody.
    """

    request: Request
    pipeline: Any
    settings: Any
    arguments: dict[str, Any]
    progress: Progress | None = None
    latents: Latents | None = None
    rules: tuple[Reweight, ...] = ()
    prior: Any = None
    turn: Callable[[Any], None] | None = None

    def step(self, done: int, total: int, latents: Any = None) -> None:
        """Tell who follows the run that ``done`` of ``total`` steps are made.

        Args:
            done, total: denoising steps.
            latents: as they are after the step, see :data:`genkit.pipelines.following.Latents`; None shows nothing.
        """
        if self.latents is not None and latents is not None:
            self.latents(latents)
        if self.progress is not None:
            self.progress(STEP, done, total)

    @property
    def fps(self) -> Fraction | None:
        """Exact frames per second, None for an image."""
        fps = getattr(self.settings, "fps", None)
        return None if fps is None else Fraction(fps)

    def patched(self) -> Any:
        """A context in which the pipeline is patched as the request says; it gives the patch handle or None."""
        attention = self.request.attention
        return nullcontext() if attention is None else attention.applied(self.pipeline)

    def call(self, function: Callable[..., Any], **changes: Any) -> Any:
        """What ``function`` returns for the run's arguments and a generator of its seed.

        Args:
            function: the pipeline, or what takes its place.
            changes: arguments that are added or changed; one that is None is left out.
        """
        import torch

        dropped = [key for key, value in changes.items() if value is None]
        arguments = {key: value for key, value in (self.arguments | changes).items() if key not in dropped}
        # Schedulers and methods may draw from the global generator; it is seeded here and left as it was.
        seed = getattr(self.settings, "seed", 0)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # casting NaN frames: refused below with a reason
            torch.manual_seed(seed)
            return function(**arguments, generator=torch.Generator("cpu").manual_seed(seed))


@dataclass
class Session:
    """A model that serves several runs. The weights are read by :meth:`load` or at the first run.

    Args:
        request: from :func:`genkit.pipelines.resolve.resolve`.
        warnings: what the user should know, one line each; filled while running.
        pipeline: the Diffusers pipeline, None before :meth:`load`.
        mixture: LoRAs that are mixed token by token, None without.
        prior: a pipeline beside it that makes prompts of pictures, None without.
        made: versions, machine and model of this session, see :func:`genkit.pipelines.record.made_with`.
    """

    request: Request
    warnings: list[str] = field(default_factory=list)
    pipeline: Any = None
    mixture: Any = None
    prior: Any = None
    made: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Read the weights and the LoRA files; does nothing the second time."""
        if self.pipeline is not None:
            return
        request, model, given = self.request, self.request.model, self.request.settings
        options: dict[str, Any] = {}
        if isinstance(given, LoadSettings):
            options = {name: getattr(given, name) for name in ("offload", "vae_tiling", "vae_slicing")}
        options["pipeline_class"] = model.pipeline_class
        parts = {each.part: each.load(model, request.dtype) for each in request.single}
        options["parts"] = parts | ({} if request.added is None else request.added.parts(request.dtype))
        fewer = getattr(given, "quantize", None)
        options["quantization"] = reading(fewer, model, request.dtype)
        place, options["parts_from"] = model.source
        pipeline = load(place, request.dtype, request.device, **options)
        finish(pipeline, fewer, model, request.dtype)
        partial = isinstance(given, LoadSettings) and given.lora_partial
        self.warnings += apply_loras(pipeline, request.loras, partial, request.take_matches(), request.shares)
        if request.added is not None:
            request.added.apply(pipeline)
            if request.added.prior is not None:
                self.prior = request.added.prior.load(pipeline, request.dtype, request.device)
        if request.mixing is not None:
            self.mixture = request.mixing.apply(pipeline)
        if request.few is not None:
            request.few.apply(pipeline, getattr(given, "flow_shift", None))
        elif request.sampler is not None:
            pipeline.scheduler = request.sampler.of(pipeline.scheduler.config)
        elif getattr(given, "flow_shift", None) is not None:
            change = {model.shift_name(): given.flow_shift}
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **change)
        loras = _lora_files(request)
        self.made = made_with(model.fingerprint(), model.class_name, str(request.device), loras) | request.fingerprints
        self.pipeline = pipeline

    def again(self, request: Request) -> Session | None:
        """A session of another request that uses the same loaded model, or None when it needs another one.

        Model, device, dtype, LoRAs and everything else that loading decides must be the same; LoRA files are read
        again when they have changed.
        """
        if self.pipeline is None:
            return None
        mine, other = self.request, request
        if any(
            getattr(mine.model, name) != getattr(other.model, name)
            for name in ("folder", "checkpoint", "pipeline_class")
        ) or (
            mine.device,
            mine.dtype,
        ) != (other.device, other.dtype):
            return None
        loras = bool(mine.loras or mine.mixing)
        names = [name for name in LOADED if loras or name != "steps"]  # shares by step are set when loading
        if any(getattr(mine.settings, name, None) != getattr(other.settings, name, None) for name in names):
            return None
        if loras and self.made["lora_fingerprints"] != [file_digest(path)[:16] for path in _lora_files(other)]:
            return None
        request.take_matches()
        kept = {name: value for name, value in self.made.items() if name not in mine.fingerprints}
        return Session(request, [], self.pipeline, self.mixture, self.prior, kept | request.fingerprints)

    def close(self) -> None:
        """Give the model's memory back; the next :meth:`run` loads it again."""
        import gc

        import torch

        self.pipeline = self.mixture = self.prior = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def run(
        self,
        settings: Any = None,
        progress: Progress | None = None,
        *,
        latents: Latents | None = None,
        stop: Stop | None = None,
    ) -> Result:
        """Generate one output.

        Args:
            settings: a variation of the request's settings in prompt or seed; what concerns the model is the same.
            progress: called as ``progress("step", done, total)`` after each denoising step and ``progress("decode",
            ...)``.
            latents: called with the latents after each denoising step, for previews.
            stop: asked before every call of a part of the model; the run ends once it returns True.

        Raises:
            Interrupted: ``stop`` returned True; the model serves the next run.
            UsageError: the prompt is too long, the schedule does not fit, or the pipeline refuses an argument.
            UnsupportedError: the method cannot serve this model, or the memory does not suffice.
            ArtifactError: the model returned NaN.
        """
        request = self.request
        settings = settings or request.settings
        self._check_variation(settings)
        prompts = request.read(settings)
        self.load()
        self._tell(*request.notes, *prompts.told)
        arguments = self.arguments(settings, prompts.prompt, prompts.negative, progress, latents)
        own, ours = (prompts.rules, ()) if request.task.weighs else ((), prompts.rules)
        run = Run(request, self.pipeline, settings, arguments, progress, latents, own, self.prior)
        seconds = -time.perf_counter()
        with (
            stoppable(self.pipeline, stop),
            _plain_errors(settings),
            as_they_are(self.pipeline),
            weighed(self.pipeline, ours) as words,
        ):
            made = request.task.run(run)
        seconds += time.perf_counter()
        asked = getattr(settings, "num_frames", None)
        if asked is not None and request.model.kind is not IMAGE and len(made.frames) != asked:
            self._tell(f"{request.model.class_name} made {counted(len(made.frames), 'frame')} of the {asked} asked for")
        if words is not None:
            self._tell(*words.report().remarks)
        if request.attention is not None:
            self._tell(*request.attention.remarks(made.report, request.steps))
        stored = self._stored(settings, made.frames)
        record = build_record(stored, self.made, request.task.command)
        return Result(
            made.frames, made.fps or run.fps, seconds, stored, record, made.report, made.audio, made.sample_rate
        )

    def stream(
        self, settings: Any = None, progress: Progress | None = None, *, stop: Stop | None = None,
        turn: Callable[[Any], None] | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Frames of one output, uint8 (T, H, W, 3), as they are made; of tasks that can. Arguments and errors as in
        :meth:`run`; ``turn`` is called before every chunk and may set another prompt. :meth:`record` tells what to
        store with them, before the first is made."""
        request = self.request
        settings = settings or request.settings
        assert request.task.stream is not None, f"{request.task.name} makes its frames at once"
        self._check_variation(settings)
        prompts = request.read(settings)
        self.load()
        self._tell(*request.notes, *prompts.told)
        arguments = self.arguments(settings, prompts.prompt, prompts.negative, None)
        run = Run(request, self.pipeline, settings, arguments, progress, turn=turn)
        with stoppable(self.pipeline, stop), _plain_errors(settings), as_they_are(self.pipeline):
            yield from request.task.stream(run)

    def record(self, settings: Any) -> dict[str, Any]:
        """What is stored with an output whose settings are known from the start; the model must be loaded."""
        return build_record(settings.replace(num_videos=1), self.made, self.request.task.command)

    def _stored(self, settings: Any, frames: np.ndarray) -> Any:
        """The settings of one output, with the size that the pipeline chose where nobody said one."""
        sizes = {"height": frames.shape[1], "width": frames.shape[2]}
        known = self.request.model.accepted if isinstance(settings, SizeSettings) else ()
        told = {name: size for name, size in sizes.items() if name in known and getattr(settings, name) is None}
        single = {"num_videos": 1} if isinstance(settings, DrawSettings) else {}
        return settings.replace(**single, **told)

    def _check_variation(self, settings: Any) -> None:
        """Refuse settings that another request would have to be resolved for."""
        for name in settings.field_names():
            if name not in VARIES and getattr(settings, name) != getattr(self.request.settings, name):
                raise UsageError(f"{flag(name)} differs from what this session was made for; resolve the settings anew")

    def _tell(self, *lines: str) -> None:
        self.warnings += [line for line in lines if line not in self.warnings]

    def arguments(
        self,
        settings: Any,
        prompt: str | None,
        negative: str | None,
        progress: Progress | None,
        latents: Latents | None = None,
    ) -> dict[str, Any]:
        """The arguments of the pipeline's call, without the generator."""
        model = self.request.model
        values: dict[str, Any] = {"output_type": "np", **model.sidecar.call}
        if model.reads_prompt:
            values["prompt"] = prompt
        if self.request.few is not None:
            values |= self.request.few.arguments(model)
        for name, targets in argument_names(model).items():
            value = negative if name == "negative_prompt" else getattr(settings, name, None)
            target = next((target for target in targets if target in model.accepted), None)
            if target is not None and value is not None:
                values[target] = _rate(value) if target == "fps" else float(Fraction(value)) if name == "fps" else value
        if progress is not None and "callback_on_step_end" in model.accepted:
            values["callback_on_step_end"] = _step_callback(progress, latents, settings.steps)
        return values


def _rate(fps: str) -> int | float:
    rate = Fraction(fps)
    return rate.numerator if rate.denominator == 1 else float(rate)


def _lora_files(request: Request) -> list[Path]:
    """The LoRA files of a request, in the order of the record."""
    return [lora.path for lora in request.loras] + ([] if request.mixing is None else request.mixing.files)


def _step_callback(progress: Progress, latents: Latents | None, steps: int | None) -> Callable:
    def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        total = getattr(pipeline, "num_timesteps", None) or steps or step + 1
        if latents is not None and tensors.get("latents") is not None:
            latents(tensors["latents"])
        progress(STEP, step + 1, total)
        if step + 1 >= total:
            progress(DECODE, 0, 1)
        return tensors

    return after_step


def run(settings: Settings, progress: Progress | None = None) -> Result:
    """Generate one output: check, load, run.

    Example:
        >>> result = run(GenerateSettings(prompt="a red circle moves right", seed=1))  # doctest: +SKIP
        >>> result.write("circle.mp4")  # doctest: +SKIP
    """
    return Session(resolve(settings)).run(progress=progress)


@contextmanager
def _plain_errors(settings: Any) -> Iterator[None]:
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
        if not _from_checks(error):
            raise
        raise UsageError(f"the pipeline refuses an argument: {said(error)}") from error
    except RuntimeError as error:
        if "alloc" not in str(error) or "memory" not in str(error):
            raise
        raise UnsupportedError("the main memory does not suffice; try fewer frames or a smaller size") from error


def _from_checks(error: BaseException) -> bool:
    """Whether an exception was raised by a pipeline's own argument check, or by its scheduler's of the number of steps,
    rather than by a fault inside it."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in ("check_inputs", "set_timesteps"):
            return True
        trace = trace.tb_next
    return False
