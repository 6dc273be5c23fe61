"""Chained shots, and clips that are continued, checked against a model that has no weights yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.editing.shot_chain.pipeline import accepted, carried_within
from genkit.editing.shot_chain.plan import ChainPlan, lengths
from genkit.errors import UnsupportedError, UsageError, counted
from genkit.pipelines.kinds import VIDEO, kind_of
from genkit.pipelines.load import find_class
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.inputs.pictures import as_pictures
from genkit.pipelines.tasks.inputs.serving import as_class, others, taken_by
from genkit.pipelines.tasks.inputs.settings import given_flags
from genkit.pipelines.tasks.storyboard.settings import CHAIN, tiles_asked
from genkit.pipelines.tasks.storyboard.shots import Shot

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.resolve import Draft, Request
    from genkit.pipelines.session import Run
    from genkit.pipelines.task import Made
    from genkit.pipelines.tasks.inputs.files import Files

#: What chained shots can be given beside their prompts.
GIVEN = ("image", "source_video", "last_image")


@dataclass(frozen=True)
class Chain:
    """Shots in a chain that fit a model.

    Args:
        prompts: of the shots, as the model reads them.
        frames: of each.
        window: frames that the model makes at once.
        border: frames of the shot before that each is given.
        plan: the calls.
        first: class of the first shot's pipeline, where it is another than the model's.
        clip: uint8 (F, H, W, 3), what is continued; None = nothing.
        pictures: ``image`` and ``last_image``, as Pillow pictures.
        only_new: whether the frames of ``clip`` are left out of what is made; it then holds as many as one call makes.
        each: frames behind a latent frame.
    """

    prompts: tuple[str, ...]
    frames: tuple[int, ...]
    window: int
    border: int
    plan: ChainPlan
    first: type | None
    clip: np.ndarray | None
    pictures: dict[str, Any]
    only_new: bool = False
    each: int = 4

    def texts(self) -> tuple[str, ...]:
        """The shots as settings hold them."""
        return tuple(Shot(prompt, own).text for prompt, own in zip(self.prompts, self.frames, strict=True))

    def told(self) -> list[str]:
        """What the user should know, one line each."""
        calls, before = len(self.plan.windows), self.plan.before
        given = self.plan.windows[0].given
        shots = f"{counted(len(self.prompts), 'chained shot')}; shot {self.plan.words()}"
        if len(self.prompts) == 1:
            shots = f"{counted(self.plan.frames - before, 'new frame')}"
        made = "one call" if calls == 1 else f"{calls} calls"
        lines = [f"{shots}, in {made} of at most {counted(max(part.frames for part in self.plan.windows), 'frame')}"]
        if before:
            clip = "the clip" if self.only_new else f"the clip of {before} frame{'s' * (before > 1)}"
            last = "its last frame is" if given == 1 else f"its last {given} frames are"
            lines.append(f"{clip} is continued; {last} given to the model")
        if before and given == 1:
            least = 1 + self.each
            more = f"a clip of {counted(least, 'frame')} or more tells how it goes on"
            if self.window < least + self.each:  # at most half of a window is given
                more = f"--tile-frames {least + self.each} or more, and {more}"
            lines.append(f"one frame shows no motion: {more}")
        return lines


def chains(kind: type) -> str | None:
    """Why a pipeline class does not make shots from a first frame; None where it does."""
    known = accepted(kind)
    if kind_of(kind) is not VIDEO:
        return f"{kind.__name__} makes no videos alone"
    if "prompt" not in known or "num_frames" not in known:
        return f"{kind.__name__} takes no {'prompt' if 'prompt' not in known else 'number of frames'}"
    taken = taken_by(kind, lambda part: {})
    if taken.arguments.get("image") != ("image",) or taken.told.looks:
        return f"{kind.__name__} takes no first frame"
    if not set(taken.needs) <= {"image"}:
        missing = " and ".join(flag(need) for need in taken.needs if need != "image")
        return f"{kind.__name__} needs {missing} too"
    return None


def chain_class(model: Model) -> type | None:
    """The class that makes shots from a first frame with a model's parts; None where there is none."""
    return next((each for each in (model.pipeline_class, *others(model)) if chains(each) is None), None)


@dataclass
class Way:
    """How shots become one clip, which a model decides where the settings leave it open.

    Args:
        settings: of the request.
        chained: whether they are chained; known once the model is.
    """

    settings: Any
    chained: bool = False

    def take(self, model: Model) -> Model:
        """The model as the class that makes the clip.

        Raises:
            UsageError, UnsupportedError: it has no such way, or not with what is given.
        """
        from genkit.editing.ditctrl.pipeline import refuse

        named, given = self.settings.shots_by, given_flags(self.settings)
        found = chain_class(model)
        self.chained = named == CHAIN or (
            named is None and not tiles_asked(self.settings) and (found is not None or bool(given))
        )
        if self.chained:
            if found is None:
                what = f"{given[0]} with several prompts" if named is None else "--shots-by chain"
                reason = chains(model.pipeline_class)
                raise UnsupportedError(f"{what}: {reason}; genkit models MODEL tells what a model takes")
            return as_class(model, found)
        if given:
            raise UsageError(
                f"{given[0]} and several prompts exclude each other where tiles are blended; take --shots-by chain, or "
                "leave one out"
            )
        model.check_inputs("generate", ())
        refuse(model.class_name, model.config("transformer"))
        return model


def chain_request(draft: Draft, files: Files, shots: Sequence[Shot], total: int | None) -> Request:
    """The finished request of a chain: size, rate and length filled in, what it is given read.

    Args:
        draft: with the model as the class that makes the shots, filled; ``num_frames`` open.
        files: what is given.
        shots: of the chain; one continues a clip.
        total: frames that the user asked for.

    Raises:
        UsageError: lengths or inputs that do not fit.
    """
    from genkit.pipelines.tasks.inputs.files import full_places
    from genkit.pipelines.tasks.storyboard.board import usual_frames

    settings, model = draft.settings, draft.model
    window = settings.tile_frames or usual_frames(model)
    each = 1 if model.rule is None else model.rule.frames_multiple
    if settings.tile_frames is not None and (window <= each or (window - 1) % each):
        low = max(window - (window - 1) % each, 1 + each)
        near = f"{low} or {low + each}" if low < window else f"{low}"
        raise UsageError(
            f"--tile-frames: got {window}, allowed: 1 plus a multiple of {each}, {1 + each} or more; take {near}"
        )
    draft.set(num_frames=window)
    draft.check_sizes()
    clip, pictures = read_given(draft, files)
    border, within = settings.border_frames, carried_within(model.pipeline_class, each, window)
    if border > 1 and not taken_by(model.pipeline_class, model.config).continues:
        raise UsageError(
            f"--border-frames: got {border}; {model.class_name} is given one frame, no beginning of several; take 1"
        )
    before = 0 if clip is None else len(clip)
    kept = 0 if settings.only_new else before
    frames = None if shots[0].frames is None else [int(shot.frames or 0) for shot in shots]
    if total is not None and frames is None:
        frames = lengths(total, len(shots), each, before, kept)
    elif total is not None and frames is not None and total != kept + sum(frames):
        made = kept + sum(frames)
        raise UsageError(f"--num-frames: got {total}, the shots have {counted(made, 'frame')} together; leave one out")
    laid = ChainPlan.of(len(shots), frames, window, each, border, within, before)
    spans = tuple(end - first for first, end in laid.spans)
    prompts = tuple(shot.prompt for shot in shots)
    chain = Chain(prompts, spans, window, border, laid, _first(draft, files), clip, pictures, settings.only_new, each)
    draft.notes += chain.told()
    if len(shots) > 1:
        draft.set(shots=chain.texts(), shots_by=CHAIN)
    request = draft.close(
        frames=max(part.frames for part in laid.windows), inputs=chain,
        fingerprints=files.fingerprints() if files.all else None, **(full_places(files) if files.all else {}),
    )  # fmt: skip
    # The length of the whole clip follows no rule where the clip before it does not.
    whole = request.settings.replace(num_frames=laid.frames - (before - kept))
    return replace(request, settings=whole)


def read_given(draft: Draft, files: Files) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The clip that is continued, and the pictures that the chain begins and ends with; size and rate are filled in.

    Raises:
        UsageError: what the model's class does not take.
    """
    from genkit.pipelines.tasks.inputs.arguments import Arguments
    from genkit.pipelines.tasks.inputs.plan import plan

    taken, name = taken_by(draft.model.pipeline_class, draft.model.config), draft.model.class_name
    source = next(iter(files.of("source_video")), None)
    for each in files.all:
        if each.setting not in GIVEN:
            allowed = ", ".join(map(flag, GIVEN))
            raise UsageError(
                f"{flag(each.setting)} and several prompts exclude each other; chained shots take {allowed}"
            )
        if each.setting not in taken.arguments or (each is source and not taken.continues):
            reason = taken.refused.get(each.setting, f"{name} does not take it in a chain of shots")
            raise UsageError(f"{flag(each.setting)}: {reason}")
    if source is not None and files.of("image"):
        raise UsageError("--image and --source-video both say what the clip begins with; leave one out")
    if len(files.of("image")) > 1:
        raise UsageError(f"--image: got {counted(len(files.of('image')), 'picture')}, a chain begins with one")
    if not files.all:
        return None, {}
    making = Arguments(plan(files, draft), draft)
    last = draft.settings.tile_frames or draft.settings.num_frames
    clip = None if source is None else making.whole(source, last if draft.settings.only_new else None)
    return clip, {each.setting: as_pictures(making.picture(each))[0] for each in files.all if each is not source}


def _first(draft: Draft, files: Files) -> type | None:
    """The class that makes the first shot, where it is another; UsageError where nothing can."""
    model = draft.model
    if files.of("image") or files.of("source_video") or not taken_by(model.pipeline_class, model.config).needs:
        return None
    own = find_class(model.folder, model.config("model_index")["_class_name"])
    first = next((each for each in (own, *others(model)) if _from_text(each, model)), None)
    if first is None:
        raise UsageError(f"{model.class_name} makes videos from a first frame; give --image FILE, how they begin")
    return first


def _from_text(kind: type, model: Model) -> bool:
    return kind_of(kind) is VIDEO and "prompt" in accepted(kind) and not taken_by(kind, model.config).needs


def run_chain(run: Run) -> Made:
    """The clip of a chain, made with the loaded model."""
    from genkit.editing.shot_chain import ShotChainPipeline
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.cleaning import as_they_are
    from genkit.pipelines.following import DECODE
    from genkit.pipelines.task import Made

    chain: Chain = run.request.inputs
    kind: Any = chain.first
    first = None if kind is None else kind.from_pipe(run.pipeline)
    if first is not None:
        first.set_progress_bar_config(disable=True)

    def follow(done: int, total: int, latents: Any) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    def make(*, generator: Any, prompt: str, **call: Any) -> Any:
        for name in ("num_frames", "output_type", "callback_on_step_end"):
            call.pop(name, None)
        prompts = chain.prompts if len(chain.prompts) > 1 else (prompt,)
        return ShotChainPipeline(run.pipeline, first)(
            prompts, chain.frames, clip=chain.clip, window_frames=chain.window, border_frames=chain.border,
            generator=generator, progress=follow, **chain.pictures, **call,
        )  # fmt: skip

    with run.patched() as handle, as_they_are(first or run.pipeline):
        made = run.call(make)
    return Made(made.new if chain.only_new else made.frames, report=report_of(handle))
