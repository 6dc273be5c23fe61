"""What makes the outputs of a variant: a session of ``genkit generate``'s settings, or any loaded pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from genkit.evaluation.comparison.caches import cached
from genkit.evaluation.comparison.numbers import Output
from genkit.pipelines.following import STEP, Progress, Stop

Keep = Callable[[Any], None]


@dataclass(frozen=True)
class Run:
    """One output with what its making took.

    Args:
        output: frames, sound, latents.
        seconds: of the pipeline call: text, denoising and decoding, without loading and writing.
        report: what the attention patch did, as plain values; None without one.
        record: what is stored inside the file.
    """

    output: Output
    seconds: float
    report: dict[str, Any] | None = None
    record: dict[str, Any] | None = None


class Maker(Protocol):
    """Makes the outputs of one variant."""

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline, the same object for variants that share it."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def told(self) -> list[str]:
        """What the user should know, one line each."""

    def begins(self) -> int:
        """The first step in which anything of the variant acts."""

    def make(self, prompt: str, seed: int, progress: Progress, latents: Keep, stop: Stop | None) -> Run:
        """One output; ``stop`` may end it early (:class:`genkit.pipelines.following.Interrupted`)."""


def first_step(parts: Any, steps: int | None) -> int:
    """The first step that any of the parts of a patch covers; 0 where that is not known."""
    from genkit.patching.schedule import resolve

    starts = []
    for part in parts:
        spans = None if part.schedule is None else part.schedule.steps
        if spans is None or steps is None:
            return 0
        covered = resolve("steps", spans, steps)
        starts += [min(covered)] if covered else []
    return min(starts, default=0)


@dataclass
class SessionMaker:
    """A variant of ``genkit generate``.

    Args:
        session: of :mod:`genkit.pipelines.session`; loaded when first used.
        cache: configuration of a Diffusers cache, or None.
    """

    session: Any
    cache: Any = None

    @property
    def pipeline(self) -> Any:
        return self.session.pipeline

    @property
    def device(self) -> str:
        return str(self.session.request.device)

    @property
    def told(self) -> list[str]:
        return list(self.session.warnings)

    def begins(self) -> int:
        request = self.session.request
        return 0 if request.attention is None else first_step(request.attention.parts, request.steps)

    def make(self, prompt: str, seed: int, progress: Progress, latents: Keep, stop: Stop | None) -> Run:
        settings = self.session.request.settings.replace(prompt=prompt, seed=seed, num_videos=1)
        with cached(self.session.pipeline, self.cache):
            made = self.session.run(settings, progress, latents=latents, stop=stop)
        output = Output(made.frames, made.fps, made.audio, made.sample_rate)
        return Run(output, made.seconds, made.report, made.record)


@dataclass
class PipelineMaker:
    """A variant of a pipeline that somebody has loaded.

    Args:
        loaded: any Diffusers pipeline for pictures or clips.
        method: for :func:`genkit.patch`; None for the model's own attention.
        options: further arguments of :func:`genkit.patch`.
        cache: configuration of a Diffusers cache, or None.
        call: arguments of the pipeline's call.
        fps: frames per second of clips.
    """

    loaded: Any
    method: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: Any = None
    call: Mapping[str, Any] = field(default_factory=dict)
    fps: Fraction | None = None
    told: list[str] = field(default_factory=list)

    @property
    def pipeline(self) -> Any:
        return self.loaded

    @property
    def device(self) -> str:
        return str(getattr(self.loaded, "_execution_device", "cpu"))

    def begins(self) -> int:
        from genkit.patching.parts import as_parts

        if self.method is None:
            return 0
        steps = self.call.get("num_inference_steps")
        return first_step(as_parts(self.method, self.options.get("schedule"), self.options.get("roles")), steps)

    def make(self, prompt: str, seed: int, progress: Progress, latents: Keep, stop: Stop | None) -> Run:
        import time

        import torch

        from genkit.patching import patch
        from genkit.pipelines.attention import report_of
        from genkit.pipelines.following import stoppable
        from genkit.pipelines.kinds import IMAGE, accepted, kind_of
        from genkit.pipelines.outputs import fit_sound, to_frames, to_sound

        kind = kind_of(type(self.loaded))
        known = accepted(type(self.loaded))
        arguments: dict[str, Any] = {"output_type": "np", **self.call}
        if "callback_on_step_end" in known:
            arguments["callback_on_step_end"] = _after_step(progress, latents)
        with ExitStack() as stack:
            stack.enter_context(stoppable(self.loaded, stop))
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(cached(self.loaded, self.cache))
            handle = None
            if self.method is not None:
                handle = stack.enter_context(patch(self.loaded, self.method, **self.options))
            torch.manual_seed(seed)
            begun = time.perf_counter()
            made = self.loaded(prompt, generator=torch.Generator("cpu").manual_seed(seed), **arguments)
            frames = to_frames(made, kind)
            seconds = time.perf_counter() - begun
            report = report_of(handle)
        fps = None if kind is IMAGE else self.fps
        audio, rate = to_sound(made, self.loaded, kind)
        if audio is not None and rate is not None and fps is not None:
            audio = fit_sound(audio, rate, len(frames), fps)
        return Run(Output(frames, fps, audio, rate), seconds, report)


def _after_step(progress: Progress, latents: Keep) -> Callable[..., dict[str, Any]]:
    def after(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if tensors.get("latents") is not None:
            latents(tensors["latents"])
        progress(STEP, step + 1, getattr(pipeline, "num_timesteps", None) or step + 1)
        return tensors

    return after


def as_array(latents: Any) -> np.ndarray:
    """Latents of any device and type as float32, copied."""
    return np.array(latents.detach().float().cpu().numpy(), copy=True)
