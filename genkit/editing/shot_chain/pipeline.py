"""Several prompts, one clip: every shot is made from the last frames of the shot before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.editing.shared.pipeline import Input, Progress, as_frames, size_rule
from genkit.editing.shot_chain.plan import ChainPlan, Window
from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain

#: Latent frames that are carried over within a shot, where the model takes how a clip begins: motion needs two, and
#: what turns back (a ball that bounces) three.
WITHIN = 3


@dataclass
class ShotChainOutput:
    """What was made.

    Args:
        frames: uint8 (F, H, W, 3): the whole clip, with the frames of the clip that was continued.
        plan: the calls; ``plan.spans`` are the shots' frames.
    """

    frames: np.ndarray
    plan: ChainPlan

    @property
    def new(self) -> np.ndarray:
        """The frames that were made, without those of the clip that was continued."""
        return self.frames[self.plan.before :]

    def shot(self, number: int) -> np.ndarray:
        """The frames of one shot."""
        first, end = self.plan.spans[number]
        return self.frames[first:end]


class ShotChainPipeline:
    """One clip from several prompts, or the continuation of a clip, by a model that takes a first frame.

    Every shot is one call of the pipeline (several where it is longer than the model makes at once), which is given the
    last frame of the shot before, and whose other frames are put behind it. A border thus has no cut, and every shot
    has its own prompt alone. Pipelines whose call takes a ``beginning`` (:class:`genkit.WanGivenFramesPipeline`) are
    given the last frames *within* a shot and of a clip that is continued, so that its motion goes on.

    Args:
        pipe: a pipeline for videos whose call takes ``image``, the first frame.
        first: one that makes the first shot from its prompt alone; left out where ``pipe`` does that too, or where the
            first frame is given.

    Source: the usual way to make long videos of image-to-video models; frames carried over within a shot as in Wan 2.2
    5B and diffusion forcing, clean and at noise level 0.

    Example:
        >>> import genkit
        >>> pipe = genkit.ShotChainPipeline(genkit.WanGivenFramesPipeline.from_pipe(genkit.load("toy-video")))
        >>> prompts = ["a red circle moves right on a blue background", "a red circle moves down on a blue background"]
        >>> made = pipe(prompts, window_frames=5, height=64, width=64, num_inference_steps=1)
        >>> made.frames.shape, made.plan.spans
        ((9, 64, 64, 3), ((0, 5), (5, 9)))
    """

    def __init__(self, pipe: Any, first: Any = None):
        if "image" not in accepted(pipe):
            raise UnsupportedError(
                f"chained shots: {type(pipe).__name__} takes no first frame (image); give a pipeline from pictures"
            )
        self.pipe, self.first = pipe, first

    def __call__(
        self,
        prompts: Sequence[str],
        frames: Sequence[int] | None = None,
        *,
        image: Any = None,
        clip: Input = None,
        last_image: Any = None,
        height: int,
        width: int,
        window_frames: int | None = None,
        border_frames: int = 1,
        within_frames: int | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        **call: Any,
    ) -> ShotChainOutput:
        """Make a clip.

        Args:
            prompts: of the shots, in order; one is enough.
            frames: of every shot. The first one has 1 plus a multiple of the frames behind a latent one, the others,
                which go on from a frame, a multiple of them. None = as many as the model makes at once.
            image: the first frame of the first shot.
            clip: what the first shot goes on from, in place of ``image``: uint8 (F, H, W, 3), or a list of pictures, of
                the size that is made.
            last_image: the last frame of the last shot, of pipelines that take one.
            height, width: pixels.
            window_frames: frames that the model makes at once; None = the default of the pipeline's call.
            border_frames: frames that a shot is given of the one before. 1 = the object may turn at once; more, of
                pipelines that take a ``beginning``, carry its motion over too.
            within_frames: likewise within a shot of several windows, and of ``clip``; None = three latent frames of
                pipelines that take a beginning, at most half of a window's, else 1.
            generator: of all noise.
            progress: called after every step with (done, in all, latents of the window).
            call: further arguments of the pipeline's call, the same for every shot.

        Returns:
            The clip and its plan.

        Cost: that of the shots made one by one; encoding the carried frames is small beside them.

        Raises:
            UsageError: lengths that do not fit. UnsupportedError: what the pipeline's call does not take.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise UsageError(explain("prompts", prompts, "a list of texts, one for each shot"))
        if image is not None and clip is not None:
            raise UsageError("image and clip are both what the first shot goes on from; give one of them")
        each = size_rule(self.pipe)[1]
        shown = np.zeros((0, height, width, 3), np.uint8) if clip is None else as_frames(clip)
        if clip is not None and shown.shape[1:3] != (height, width):
            got = f"{shown.shape[2]}x{shown.shape[1]} pixels"
            raise UsageError(explain("clip", got, f"{width}x{height}, the size that is made"))
        window = usual_window(self.pipe) if window_frames is None else window_frames
        within = carried_within(self.pipe, each, window) if within_frames is None else within_frames
        plan = ChainPlan.of(len(prompts), frames, window, each, border_frames, within, len(shown))
        self._check(plan, image, last_image)
        follow = Follow(progress, len(plan.windows))
        for number, part in enumerate(plan.windows):
            given: dict[str, Any] = {"image": image} if image is not None and number == 0 else {}
            if part.given:
                given = carried(shown, part)
            if last_image is not None and number + 1 == len(plan.windows):
                given["last_image"] = last_image
            pipe = self.pipe if given or self.first is None else self.first
            sizes = {"height": height, "width": width, "num_frames": part.frames, "output_type": "np"}
            asked = {**call, **given, **sizes, "prompt": prompts[part.shot], "generator": generator}
            made = _made(pipe, {**asked, **follow.argument(pipe)}, part)
            shown = np.concatenate([shown, made[part.given :]])
        return ShotChainOutput(shown, plan)

    def _check(self, plan: ChainPlan, image: Any, last_image: Any) -> None:
        """Refuse what the pipeline cannot be given."""
        name, known = type(self.pipe).__name__, accepted(self.pipe)
        if any(part.given > 1 for part in plan.windows) and "beginning" not in known:
            raise UnsupportedError(f"chained shots: {name} is given one frame, no beginning of several; carry 1 over")
        if last_image is not None and "last_image" not in known:
            raise UnsupportedError(f"chained shots: {name} takes no last frame")
        alone = plan.windows[0].given == 0 and image is None and self.first is None
        if alone and known["image"].default is inspect.Parameter.empty:
            raise UsageError(f"chained shots: {name} needs a first frame; give image, or first=, a pipeline from text")


@dataclass
class Follow:
    """Tells somebody of the steps of all windows.

    Args:
        progress: whom; None for nobody. windows: how many there are.
    """

    progress: Progress | None
    windows: int
    begun: int = 0

    def argument(self, pipe: Any) -> dict[str, Callable]:
        """The callback of the next window's call, of pipelines that have one."""
        if self.progress is None or "callback_on_step_end" not in accepted(pipe):
            return {}
        number, self.begun = self.begun, self.begun + 1
        progress = self.progress

        def after(pipeline: Any, step: int, _: Any, values: dict) -> dict:
            steps = getattr(pipeline, "num_timesteps", None) or step + 1
            progress(number * steps + step + 1, self.windows * steps, values["latents"])
            return values

        return {"callback_on_step_end": after}


def carried(shown: np.ndarray, part: Window) -> dict[str, Any]:
    """What a window is given of the clip before it, as arguments of the call."""
    from PIL import Image

    if part.given == 1:
        return {"image": Image.fromarray(shown[-1])}
    return {"beginning": shown[-part.given :]}


def accepted(pipe: Any) -> Any:
    """Parameters of a pipeline's call by name; ``pipe`` may be its class."""
    kind = pipe if isinstance(pipe, type) else type(pipe)
    return inspect.signature(kind.__call__).parameters


def carried_within(pipe: Any, each: int, window: int) -> int:
    """Frames that windows of one shot give each other: three latent frames where the call takes a beginning, at most
    half of the window's (rounded up), else one frame."""
    if "beginning" not in accepted(pipe):
        return 1
    half = ((window - 1) // each + 2) // 2
    return 1 + each * (min(WITHIN, half) - 1)


def usual_window(pipe: Any) -> int:
    """Frames that a pipeline's call makes when nobody says how many."""
    known = accepted(pipe)
    usual = known["num_frames"].default if "num_frames" in known else None
    if not isinstance(usual, int):
        raise UsageError(f"{type(pipe).__name__} does not tell how many frames it makes at once; give window_frames")
    return usual


def _made(pipe: Any, asked: dict[str, Any], part: Window) -> np.ndarray:
    """Frames of one window, uint8 (F, H, W, 3)."""
    known = accepted(pipe)
    made = pipe(**{name: value for name, value in asked.items() if name in known}).frames[0]
    values = np.asarray(made)
    if len(values) != part.frames:
        raise UnsupportedError(
            f"{type(pipe).__name__} made {counted(len(values), 'frame')} where {part.frames} were asked for"
        )
    if not np.isfinite(values).all():
        raise ArtifactError("the model returned NaN or infinite pixels; try float32 or other weights")
    return (values * 255).round().clip(0, 255).astype(np.uint8)
