"""What the editing pipelines have in common: made from a loaded pipeline, called with a picture or clip, giving one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from genkit.editing.shared.model import EditModel
from genkit.errors import UsageError, counted, explain
from genkit.families.lookup import diffusers_class, facts_of
from genkit.families.sizes import ReadConfig
from genkit.media.canvas import Canvas

if TYPE_CHECKING:
    from PIL import Image

#: Gets (steps done, steps in all, latents (1, ...) of what is made as it stands) after every step.
Progress = Callable[[int, int, torch.Tensor], None]
#: A PIL picture, an array (H, W, 3) or (F, H, W, 3) of uint8, or a list of PIL pictures: a clip.
Input = Any


@dataclass
class EditOutput:
    """What an edit made.

    Args:
        frames: uint8 (F, H, W, 3), of the input's size; F is 1 of a picture.
        latents: (1, ...), what was decoded.
        told: what the user should know, one line each.
        details: further results of the method (masks, inverted latents), by name.
    """

    frames: np.ndarray
    latents: torch.Tensor
    told: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[Image.Image]:
        """The frames as PIL pictures."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.frames]


@dataclass(frozen=True)
class Work:
    """The input at a size that the model takes.

    Args:
        canvas: of its first frame.
        frames: uint8 (F, H, W, 3), padded in space by the mirror image and in time by its last frame.
        length: frames of the input.
    """

    canvas: Canvas
    frames: np.ndarray
    length: int

    @classmethod
    def of(cls, model: EditModel, image: Input, multiple: int | None = None, steps: int | None = None) -> Work:
        """Read what a user gives and pad it; nothing is ever scaled.

        Args:
            model: it is for.
            image: see :data:`Input`.
            multiple: what height and width must be multiples of; the family's rule where it is None.
            steps: frames behind a latent one, likewise.
        """
        frames = as_frames(image)
        if not model.video and len(frames) > 1:
            raise UsageError(
                f"{type(model.pipe).__name__} edits pictures; got a clip of {counted(len(frames), 'frame')}"
            )
        usual = size_rule(model.pipe)
        multiple, steps = multiple or usual[0], steps or usual[1]
        canvas = Canvas.of(frames[0], multiple)
        padded = np.moveaxis(canvas.pad(np.moveaxis(frames, 0, 2)), 2, 0)
        short = -(len(frames) - 1) % steps if model.video else 0
        padded = np.concatenate([padded, padded[-1:].repeat(short, 0)])
        return cls(canvas, np.ascontiguousarray(padded), len(frames))

    @property
    def told(self) -> tuple[str, ...]:
        """What the user should know of the working size."""
        more = len(self.frames) - self.length
        late = (
            f"the clip of {counted(self.length, 'frame')} is worked on with its last one repeated "
            f"{counted(more, 'time')}, cut off again"
        )
        return (*self.canvas.told, *([late] if more else []))

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """Frames of the working size as frames of the input's."""
        return self.canvas.crop(frames)[: self.length]


def as_frames(image: Input) -> np.ndarray:
    """A picture or clip as uint8 (F, H, W, 3).

    Raises:
        UsageError: something else.
    """
    allowed = "a PIL picture, a list of them, or an array (H, W, 3) or (F, H, W, 3) of uint8"
    if isinstance(image, np.ndarray):
        found = image[None] if image.ndim == 3 else image
        if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8 or 0 in found.shape:
            raise UsageError(explain("image", f"an array {image.shape} of {image.dtype}", allowed))
        return found
    pictures = list(image) if isinstance(image, (list, tuple)) else [image]
    if not pictures or not all(hasattr(picture, "convert") for picture in pictures):
        raise UsageError(explain("image", type(image).__name__, allowed))
    if len({picture.size for picture in pictures}) > 1:
        raise UsageError("the pictures of a clip differ in size; give frames of one size")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def size_rule(pipe: Any) -> tuple[int, int]:
    """What sizes and numbers of frames less one are multiples of, as the pipeline's family says; 8 and 1 without."""
    known = facts_of(diffusers_class(pipe) or type(pipe).__name__)
    if known is None or known.sizes is None:
        return 8, 1
    rule = known.sizes(config_of(pipe))
    return rule.multiple, rule.frames_multiple


def config_of(pipe: Any) -> ReadConfig:
    """A reader of the configurations of a pipeline's parts; an absent part reads as empty."""

    def config(part: str) -> dict:
        return dict(getattr(getattr(pipe, part, None), "config", None) or {})

    return config


class EditPipeline:
    """Base of the editing pipelines.

    Args:
        pipe: a loaded Diffusers pipeline; its parts are used, not copied, and left as they are.

    Raises:
        UnsupportedError: a pipeline that the method cannot drive, with the reason.
    """

    #: Whether the method gives mask and masked picture to denoisers that read them.
    inpaints: ClassVar[bool] = False

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.model = EditModel.of(pipe, self.inpaints)

    @classmethod
    def from_pipe(cls, pipe: Any) -> Self:
        """The editing pipeline of a loaded Diffusers pipeline; no weights are copied."""
        return cls(pipe)

    def _work(self, image: Input, multiple: int | None) -> tuple[Work, torch.Tensor]:
        """The input at the working size, and its latents."""
        work = Work.of(self.model, image, multiple)
        return work, self.model.encode(work.frames)

    def _output(self, work: Work, latents: torch.Tensor, told: Sequence[str] = (), **details: Any) -> EditOutput:
        """The decoded latents at the input's size."""
        frames = work.crop(self.model.decode(latents))
        self.pipe.maybe_free_model_hooks()
        return EditOutput(frames, latents, (*work.told, *told), details)


def share(value: float, name: str) -> float:
    """A number from 0 to 1.

    Raises:
        UsageError: any other.
    """
    if not 0 <= value <= 1:
        raise UsageError(explain(name, value, "a number from 0 to 1"))
    return float(value)


def first_step(steps: int, strength: float) -> int:
    """How many of ``steps`` are skipped so that ``strength`` of them are run.

    Raises:
        UsageError: a strength outside of 0..1, or so small that no step is left, which would change nothing.
    """
    share(strength, "strength")
    run = round(steps * strength)
    if not run:
        raise UsageError(
            f"strength {strength:g} of {counted(steps, 'step')} leaves no step to run; take more of either"
        )
    return steps - run
