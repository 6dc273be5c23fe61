"""A video made chunk by chunk: the model's own way to go on, frames handed out as they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError, counted
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.inputs.settings import given_flags
from genkit.reading import user_path

if TYPE_CHECKING:
    from genkit.streaming import ChunkStream
    from genkit.streaming.plan import StreamPlan


@dataclass(frozen=True)
class Asked:
    """What a stream's run is given beside the settings.

    Args:
        plan: how the model is streamed.
        prompts: frame -> text as the model reads it, the first one left out.
        own: settings of the stream beside those of the plan.
    """

    plan: StreamPlan
    prompts: dict[int, str]
    own: dict[str, Any]


#: Settings that decide nothing of the plan.
_OWN = ("context_noise", "keep", "renoise", "state")


def asked_by(settings: GenerateSettings) -> str | None:
    """Frames are wanted as they are made."""
    return "--stream" if settings.stream else None


def resolve(settings: GenerateSettings):
    """A request for a stream; the number of frames may be left open, and need not be one that a single run can make."""
    from genkit.pipelines.resolve import Draft
    from genkit.streaming.plan import CACHE, HISTORY, plan_stream
    from genkit.streaming.state import check_state

    for other, given in (("--upscale", settings.upscale > 1), ("--num-videos", settings.num_videos > 1),
                         ("--enlarge", settings.enlarge > 1), ("--vae-tiling", settings.vae_tiling),
                         (next(iter(given_flags(settings)), ""), bool(given_flags(settings)))):  # fmt: skip
        if given:
            raise UsageError(f"--stream and {other} exclude each other; leave one out")
    frames, arguments = settings.num_frames, settings.arguments()
    draft = Draft(settings.replace(num_frames=None))
    if draft.few is not None:
        arguments, taken = draft.few.streamed(arguments)
        draft.notes += taken
    window = {name: value for name, value in arguments.items() if name not in _OWN}
    plan = plan_stream(draft.model.class_name, draft.model.config, draft.model.sidecar, **window)
    further = sorted(arguments.keys() - window.keys())
    if plan.context == HISTORY and further:
        raise UsageError(
            f"--stream-args {', '.join(further)}: {draft.model.class_name} goes on in its own way; leave it out"
        )
    if plan.context == CACHE and draft.attention is not None:
        raise UsageError(
            "--attention and a stream over a cache work on the same layers; leave --attention out (--stream-args "
            "keep=0.2 reads a share of the blocks)"
        )
    if plan.context != CACHE and "keep" in arguments:
        raise UsageError("--stream-args keep belongs to context=cache; with clean frames use --attention NAME")
    if plan.context != CACHE and "state" in arguments:
        raise UsageError("--stream-args state belongs to context=cache: clean frames leave no keys and values behind")
    if "state" in arguments:
        check_state(user_path(arguments["state"], "--stream-args state"))
    draft.fill()
    draft.set(num_frames=None)
    own = {name: value for name, value in arguments.items() if name in _OWN}
    request = draft.close(inputs=Asked(plan, {}, own))
    later = {at: request.read(request.settings.replace(prompt=text)) for at, text in
             zip(settings.frames(), settings.then, strict=True)}  # fmt: skip
    if any(prompts.words for prompts in (request.prompts, *later.values())):
        raise UsageError("weights in prompts, such as (red:1.3), are not for streams, whose prompts change")
    _check_in_force(plan, int(draft.model.config("vae").get("scale_factor_temporal") or 4), list(later), frames)
    told = [line for prompts in later.values() for line in prompts.told]
    texts = {at: prompts.prompt or "" for at, prompts in later.items()}
    return replace(
        request, settings=request.settings.replace(num_frames=frames), inputs=Asked(plan, texts, own),
        notes=(*request.notes, *told),
    )  # fmt: skip


def _check_in_force(plan: StreamPlan, every: int, planned: list[int], frames: int | None) -> None:
    """Refuse a prompt that no chunk of the video would have.

    Args:
        every: frames behind a latent one. planned: frames of the prompts that follow, rising. frames: of the video.
    """
    begins = [plan.begin(frame, every) for frame in planned]
    for number, (frame, begin) in enumerate(zip(planned, begins, strict=True)):
        if frames is not None and begin >= frames:
            last = plan.begin(max(0, frames - plan.step(every)), every)
            last = last if last < frames else 0
            raise UsageError(
                f"--at: got {frame}, but no chunk of a video of {counted(frames, 'frame')} begins there or "
                "later, so its prompt "
                f"would never be in force; the last chunk begins at {last}, or take more --num-frames"
            )
        if begin in begins[number + 1 :]:
            raise UsageError(
                f"--at: got {frame} and {planned[number + 1]}, but the next chunk begins at {begin}, with the later "
                f"prompt; chunks have {counted(plan.step(every), 'frame')}, give them that far apart"
            )


def stream(run) -> Iterator[Any]:
    """Frames uint8 (T, H, W, 3), chunk by chunk; they end where as many are made as the settings ask for."""
    with run.patched():
        made = _stream_of(run)
        left = run.settings.num_frames
        while left is None or left > 0:
            if run.turn is not None:
                run.turn(made)
            chunk = next(made).frames
            yield chunk if left is None else chunk[:left]
            left = None if left is None else left - len(chunk)


def _stream_of(run) -> ChunkStream:
    """The stream that was asked for."""
    from genkit.streaming import HistoryStream, Stream
    from genkit.streaming.plan import FRAMES, HISTORY

    settings, asked, arguments = run.settings, run.request.inputs, run.arguments
    plan, window = asked.plan, asked.plan.window
    prompts = {0: arguments["prompt"], **asked.prompts}
    common = {
        "negative_prompt": arguments.get("negative_prompt"), "steps": settings.steps,
        "guidance_scale": settings.guidance_scale, "height": settings.height, "width": settings.width,
        "max_sequence_length": settings.max_sequence_length, "seed": settings.seed, "stepped": run.step,
    }  # fmt: skip
    if plan.context == HISTORY:
        return HistoryStream(run.pipeline, prompts, **common)
    return Stream(
        run.pipeline, prompts, context=plan.context, chunk=window.chunk, sink=window.sink, recent=window.recent,
        trained=window.trained, carried=plan.carried if plan.context == FRAMES else None, fps=float(run.fps or 16),
        **common, **asked.own,
    )  # fmt: skip


def run(run) -> Made:
    """All frames at once, for callers that do not take them as they come."""
    import numpy as np

    if run.settings.num_frames is None:
        raise UsageError("a stream without an end has no output to return; give --num-frames, or take it as it is made")
    return Made(np.concatenate(list(stream(run))))


TASK = Task("streaming", GenerateSettings, resolve, run, asked_by, stream=stream)
