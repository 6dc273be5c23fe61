"""``genkit generate`` as a library: settings in, frames out."""

from __future__ import annotations

import dataclasses
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import ArtifactError, GenkitError, UnsupportedError, UsageError
from genkit.media import check_output, format_of, numbered, write_media
from genkit.models import Sidecar, check_folder, locate, read_sidecar
from genkit.pipelines import attention
from genkit.pipelines.kinds import IMAGE, Kind, accepted, kind_of, native_fps, size_rule
from genkit.pipelines.load import apply_loras, fetch, load, parse_lora, resolve_device, resolve_dtype
from genkit.pipelines.prompts import check_prompt
from genkit.pipelines.record import build_record, made_with
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.text import slug

# setting -> the pipeline's names for it
ARGUMENTS = {
    "negative_prompt": ("negative_prompt",),
    "steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale",),
    "height": ("height",),
    "width": ("width",),
    "num_frames": ("num_frames", "video_length"),
    "fps": ("frame_rate",),
    "max_sequence_length": ("max_sequence_length",),
}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """One generated video or image.

    Args:
        frames: uint8 (T, H, W, 3); T is 1 for an image.
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
            path, self.frames, self.fps, settings=self.record, notes=notes,
            audio=self.audio, sample_rate=self.sample_rate, force=force,
        )  # fmt: skip


@dataclass
class Session:
    """A loaded model that serves several runs. Made by :func:`prepare`; the weights are read at the first run.

    Args:
        settings: the settings with open values filled in for this model.
        folder: the model's folder.
        pipeline_class: its Diffusers class.
        kind: what it makes.
        sidecar: its ``genkit.json``.
        warnings: what the user should know, one line each.
    """

    settings: GenerateSettings
    folder: Path
    pipeline_class: type
    kind: Kind
    sidecar: Sidecar
    warnings: list[str] = field(default_factory=list)
    pipeline: Any = None
    made: dict[str, Any] = field(default_factory=dict)

    def load(self) -> None:
        """Read the weights and the LoRA files; does nothing the second time."""
        if self.pipeline is not None:
            return
        given = self.settings
        pipeline = load(
            self.folder, given.dtype, given.device,
            offload=given.offload, vae_tiling=given.vae_tiling, vae_slicing=given.vae_slicing,
        )  # fmt: skip
        apply_loras(pipeline, given.lora)
        self.made = made_with(self.folder, self.pipeline_class.__name__, given.device)
        self.pipeline = pipeline

    def run(self, settings: GenerateSettings | None = None, progress: Progress | None = None) -> Result:
        """Generate one output.

        Args:
            settings: a variation of :attr:`settings` in prompt or seed; the model-related fields must be the same.
            progress: called as ``progress("step", done, total)`` after each denoising step and ``progress("decode", ...)``.

        Raises:
            UsageError: the prompt is too long, the schedule does not fit, or the pipeline refuses an argument.
            UnsupportedError: the method cannot serve this model, or the memory does not suffice.
            ArtifactError: the model returned NaN.
        """
        settings = settings or self.settings
        self.load()
        prompt, negative, cut = check_prompt(self.pipeline, settings)
        self.warnings += [line for line in cut if line not in self.warnings]
        arguments = self._arguments(settings, prompt, negative, progress)
        seconds = -time.perf_counter()
        with attention.applied(self.pipeline, settings) as patch, _plain_errors(settings):
            output = self._call(arguments, settings)
        seconds += time.perf_counter()
        report = attention.report_of(patch)
        frames = to_frames(output, self.kind)
        audio, rate = to_sound(output, self.pipeline, self.kind)
        fps = None if self.kind is IMAGE else Fraction(settings.fps)
        stored = settings.replace(num_videos=1)
        return Result(frames, fps, seconds, settings, build_record(stored, self.made), report, audio, rate)

    def _call(self, arguments: dict[str, Any], settings: GenerateSettings) -> Any:
        import torch

        # Schedulers and methods may draw from the global generator; it is seeded here and left as it was.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # casting NaN frames: refused below with a reason
            torch.manual_seed(settings.seed)
            return self.pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(settings.seed))

    def _arguments(
        self, settings: GenerateSettings, prompt: str, negative: str | None, progress: Progress | None
    ) -> dict[str, Any]:
        known = accepted(self.pipeline_class)
        values: dict[str, Any] = {"prompt": prompt, "output_type": "np", **self.sidecar.call}
        for name, targets in ARGUMENTS.items():
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


def prepare(settings: GenerateSettings) -> Session:
    """Check settings against the model as far as possible without reading weights, and fill in what was left open.

    A hub id is downloaded here if the cache does not hold it.

    Raises:
        GenkitError: whatever is wrong, in one line; see :class:`GenerateSettings`, :func:`genkit.load`.
    """
    if settings.prompt is None:
        raise UsageError('no prompt: give one, or "" for an unconditional run')
    attention.build(settings)
    for text in settings.lora:
        parse_lora(text)
    location = locate(settings.model)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if settings.offload != "none" and device.type == "cpu":
        raise UnsupportedError(f"--offload {settings.offload} needs a GPU, and the device is the CPU; leave it out")
    folder = fetch(location)
    pipeline_class = _class_of(folder)
    sidecar = read_sidecar(folder)
    kind = kind_of(pipeline_class)
    filled = _fill(settings, sidecar, pipeline_class, kind)
    filled = filled.replace(
        model=str(folder.resolve()) if location.kind == "folder" else settings.model,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        seed=settings.seed if settings.seed is not None else secrets.randbelow(2**32),
    )
    _check_sizes(filled, sidecar, pipeline_class, folder)
    attention.check_steps(filled)
    if settings.output is not None:
        check_format(settings.output, kind, filled.num_frames)
    return Session(filled, folder, pipeline_class, kind, sidecar)


def run(settings: GenerateSettings, progress: Progress | None = None) -> Result:
    """Generate one output: check, load, run.

    Example:
        >>> result = run(GenerateSettings(prompt="a red circle moves right", seed=1))  # doctest: +SKIP
        >>> result.write("circle.mp4")  # doctest: +SKIP
    """
    return prepare(settings).run(progress=progress)


def expand(session: Session, prompts: list[str]) -> list[tuple[GenerateSettings, Path]]:
    """All runs of a request with their output names: every prompt with ``num_videos`` seeds, numbered when there are several."""
    base = session.settings
    count = len(prompts) * base.num_videos
    jobs = []
    for index, prompt in enumerate(prompts):
        for offset in range(base.num_videos):
            job = base.replace(prompt=prompt, seed=base.seed + offset, num_videos=1)
            if base.output is not None:
                output = numbered(base.output, index * base.num_videos + offset, count)
            else:
                still = session.kind is IMAGE or job.num_frames == 1
                output = Path(f"{slug(prompt)}-{job.seed}{'.png' if still else session.kind.suffix}")
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


def check_format(output: str, kind: Kind, num_frames: int | None) -> None:
    """Refuse a file type that cannot hold what the model makes."""
    form = format_of(output)
    if form == "png" and kind is not IMAGE and (num_frames or 2) > 1:
        raise UsageError(
            f"--output {output}: a .png holds one image, not {num_frames} frames; use a folder, shot-%04d.png, or .mp4"
        )
    if form == "mp4" and kind is IMAGE:
        raise UsageError(f"--output {output}: this model makes images; use .png or .webp")


def _class_of(folder: Path) -> type:
    import diffusers

    name = check_folder(folder)["_class_name"]
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if found is None:
        raise UnsupportedError(
            f"{folder} needs the pipeline class {name}, which diffusers {diffusers.__version__} does not have"
        )
    return found


def _fill(settings: GenerateSettings, sidecar: Sidecar, pipeline_class: type, kind: Kind) -> GenerateSettings:
    """Open values from genkit.json, then from the pipeline's own defaults; what the pipeline does not know is refused."""
    known = accepted(pipeline_class)
    changes = {}
    for name, targets in ARGUMENTS.items():
        target = next((target for target in targets if target in known), None)
        given = getattr(settings, name)
        if target is None and name != "fps":
            if given is not None:
                raise UsageError(f"--{name.replace('_', '-')}: {pipeline_class.__name__} takes no {name}; leave it out")
            continue
        if given is None:
            own = known[target].default if target is not None else None
            value = sidecar.defaults.get(name, own)
            changes[name] = str(value) if name == "fps" and value is not None else value
    if kind is IMAGE:
        if settings.fps is not None:
            raise UsageError(f"--fps: {pipeline_class.__name__} makes images; leave it out")
        changes.pop("fps", None)
    elif settings.fps is None and changes.get("fps") is None:
        changes["fps"] = native_fps(pipeline_class.__name__)
    return settings.replace(**changes)


def _check_sizes(settings: GenerateSettings, sidecar: Sidecar, pipeline_class: type, folder: Path) -> None:
    import json

    def config(part: str) -> dict:
        path = folder / part / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    rule = size_rule(pipeline_class.__name__, config)
    limits = sidecar.limits
    if rule is not None:
        rule = dataclasses.replace(
            rule,
            multiple=limits.get("multiple", rule.multiple),
            frames_multiple=limits.get("frames_multiple", rule.frames_multiple),
        )
        rule.check(settings.height, settings.width, settings.num_frames)
    for name, low, high in (
        ("height", "min_height", "max_height"),
        ("width", "min_width", "max_width"),
        ("num_frames", None, "max_frames"),
    ):
        value = getattr(settings, name)
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if low in limits and value < limits[low]:
            raise UsageError(f"{flag}: got {value}, {settings.model} starts at {limits[low]}")
        if high in limits and value > limits[high]:
            raise UsageError(f"{flag}: got {value}, {settings.model} goes up to {limits[high]}")


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
            f"the memory of {settings.device} does not suffice for {settings.width}x{settings.height}; try --offload model, "
            "--vae-tiling, --dtype bfloat16, fewer frames or a smaller size"
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


def to_frames(output: Any, kind: Kind) -> np.ndarray:
    """The first video or image of a pipeline's output as uint8 (T, H, W, 3).

    Raises:
        ArtifactError: values that are NaN or infinite, which would be written as black pixels.
        UnsupportedError: the output has a form that is not known.
    """
    raw = getattr(output, kind.fields[0], None)
    if raw is None:
        raise UnsupportedError(f"the pipeline returned no {kind.fields[0]}")
    first = raw[0]
    values = np.stack([np.asarray(image) for image in first]) if isinstance(first, list) else np.asarray(first)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3, 4):
        raise UnsupportedError(
            f"the pipeline returned {kind.name} of shape {values.shape}, expected (frames, height, width, colours)"
        )
    if values.dtype != np.uint8:
        if not np.isfinite(values).all():
            share = 1 - np.isfinite(values).mean()
            raise ArtifactError(
                f"the model returned NaN or infinite pixels ({share:.0%}); nothing was written; try --dtype float32 or other weights"
            )
        values = np.clip(np.rint(values * 255.0), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(values[..., :3] if values.shape[-1] > 1 else np.repeat(values, 3, axis=-1))


def to_sound(output: Any, pipeline: Any, kind: Kind) -> tuple[np.ndarray | None, int | None]:
    """The first soundtrack of a pipeline's output as float32 (S, channels) and its sample rate; (None, None) when there is none."""
    raw = getattr(output, "audio", None) if "audio" in kind.fields else None
    if raw is None:
        return None, None
    sound = np.asarray(raw[0].float().cpu() if hasattr(raw[0], "cpu") else raw[0], dtype=np.float32)
    sound = sound[:, None] if sound.ndim == 1 else sound.T if sound.shape[0] <= 2 else sound
    if not np.isfinite(sound).all():
        raise ArtifactError("the model returned NaN or infinite sound; nothing was written; try --dtype float32")
    vocoder = getattr(pipeline, "vocoder", None)
    rate = getattr(getattr(vocoder, "config", None), "output_sampling_rate", None)
    if rate is None:
        raise UnsupportedError(
            f"{type(pipeline).__name__} does not tell the sample rate of its sound (no vocoder.config.output_sampling_rate)"
        )
    return sound, int(rate)
