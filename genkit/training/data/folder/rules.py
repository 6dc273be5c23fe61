"""What is done with each folder of a run: its settings, the run's where it has none, and what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from typing import Any, Protocol

from genkit.errors import UsageError, explain
from genkit.families.sizes import SizeRule
from genkit.reading import rate
from genkit.training.data.folder.captions import tidy
from genkit.training.data.folder.cuts import CutRule
from genkit.training.data.folder.items import Wanted
from genkit.training.data.folder.toml import read_dataset_toml
from genkit.training.data.source import DataSource, size_of

#: Roles of what may be given beside captions, and those that a clip has itself.
ROLES, FRAMES = ("control", "first_frame", "last_frame"), ("first_frame", "last_frame")
#: Value of those: the clip's own.
CLIP = "clip"
#: Frames of "full" where no number of frames is given: whatever the clip has.
_ALL_FRAMES = 100_000


class RunSettings(Protocol):
    """What holds for folders that say nothing of their own; :class:`~genkit.training.lora.settings.DataSettings` is
    one. The names mean what they mean there."""

    resolution: tuple[str, ...]
    num_frames: tuple[int, ...]
    fps: str | None
    frame_extraction: str
    frame_stride: int
    frame_samples: int
    aspect_buckets: bool
    upscale: bool
    caption: str | None
    caption_extension: str
    caption_dropout: float
    trigger_word: str | None
    num_repeats: int
    masks: str | None
    unmasked_weight: float
    control: str | None
    first_frame: str | None
    last_frame: str | None
    missing_audio: str


@dataclass(frozen=True)
class FolderRule:
    """A folder and everything that is done with it.

    Args:
        path: the folder.
        cuts: how a file becomes samples; every rule makes its own.
        caption: for every file that has no own one; None: each must have one.
        caption_extension: of the text files beside media.
        caption_dropout: share of its samples that come with the empty caption.
        trigger_word: put before captions that do not have it, or where they say ``[trigger]``.
        times: how often every sample comes in an epoch; of a fraction that share of them.
        masks: folder of masks of the loss.
        unmasked_weight: of the loss where a mask is black.
        given: role -> folder of what is told to the model beside the caption.
        takes: roles that the model is told; None: all.
        told: what a user should know about these settings.
    """

    path: str
    cuts: tuple[CutRule, ...]
    caption: str | None = None
    caption_extension: str = ".txt"
    caption_dropout: float = 0.0
    trigger_word: str | None = None
    times: float = 1.0
    masks: str | None = None
    unmasked_weight: float = 0.0
    given: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] | None = None
    told: tuple[str, ...] = ()

    @property
    def wanted(self) -> Wanted:
        """What is looked for in the folder."""
        return Wanted(self.caption, self.caption_extension, self.masks, self.given)


@dataclass(frozen=True)
class ModelRule:
    """What a model takes, from the configurations of its parts.

    Args:
        sizes: multiples of sides and frames.
        resolution: used where none is given, a side of a square; None of a model that tells no usual one.
        num_frames: likewise.
        fps: frames per second it was made for; None of a model for pictures, which takes no clip.
        sound: whether it makes sound.
        needs: roles of what must be given beside captions.
        takes: roles of what may be given.
    """

    sizes: SizeRule
    resolution: int | None
    num_frames: int = 1
    fps: Fraction | None = None
    sound: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def folder_rules(sources: Sequence[DataSource], settings: RunSettings, model: ModelRule) -> tuple[FolderRule, ...]:
    """One rule for every folder.

    Raises:
        UsageError: sizes or frames that the model does not take, settings without effect, a ``.toml`` file that is no
            list of data sets.
    """
    if not sources:
        raise UsageError("data: no folder was given")
    found = []
    for source in sources:
        own, told = read_dataset_toml(source.path) if source.is_toml else ((source,), ())
        rules = [_folder_rule(each, settings, model) for each in own]
        found += [replace(rules[0], told=tuple(told)), *rules[1:]]
    return tuple(found)


def _folder_rule(source: DataSource, settings: RunSettings, model: ModelRule) -> FolderRule:
    def own(name: str) -> Any:
        value = getattr(source, name, None)
        return getattr(settings, name) if value is None else value

    extension = own("caption_extension")
    if not extension.startswith(".") or "/" in extension or "\\" in extension:
        raise UsageError(explain("caption_extension", extension, "a point and letters, such as .txt"))
    sizes = own("resolution") or (() if model.resolution is None else (str(model.resolution),))
    if not sizes:
        raise UsageError("resolution: this model tells no usual size; give one, such as --resolution 512")
    words = {name: own(name) and tidy(own(name), name) for name in ("caption", "trigger_word")}
    full = own("frame_extraction") == "full"
    lengths = own("num_frames") or ((_ALL_FRAMES,) if full and model.fps is not None else (model.num_frames,))
    if model.fps is None and (settings.fps is not None or any(length > 1 for length in lengths)):
        raise UsageError("num_frames and fps: the model makes pictures; leave them out, clips give their first frame")
    fps = Fraction(16) if model.fps is None else model.fps
    cuts = tuple(
        _cut_rule(
            size_of(size), model.sizes, own("aspect_buckets"),
            frames=_lowered(frames, model.sizes) if full else frames,
            frames_multiple=model.sizes.frames_multiple,
            fps=fps if settings.fps is None else rate(settings.fps, "fps"),
            extraction=own("frame_extraction"),
            pieces=own("frame_samples"),
            stride=own("frame_stride"),
            enlarge=own("upscale"),
            missing_audio=own("missing_audio") if model.sound else None,
        )
        for size, frames in product(sizes, lengths)
    )  # fmt: skip
    return FolderRule(
        source.path, cuts, words["caption"], extension, own("caption_dropout"), words["trigger_word"],
        own("num_repeats") * source.weight, own("masks"), settings.unmasked_weight, _given(own, model),
        model.needs + model.takes,
    )  # fmt: skip


def _given(own: Callable[[str], Any], model: ModelRule) -> dict[str, str]:
    """Role -> folder of what is given beside captions."""
    found = {}
    for role in ROLES:
        folder = own(role)
        if folder is None:
            if role in model.needs and role not in FRAMES:
                raise UsageError(f"{role}: the model needs it; allowed: a folder of pictures with the samples' names")
            continue
        if role not in model.needs + model.takes:
            raise UsageError(f"{role}: the model is told no such picture; leave it out")
        # What is not given is taken from the clip itself.
        if not (role in FRAMES and folder == CLIP):
            found[role] = folder
    return found


def _cut_rule(size: int | tuple[int, int], sizes: SizeRule, aspect_buckets: bool, **more: Any) -> CutRule:
    if isinstance(size, int) and aspect_buckets:
        if size < sizes.multiple:
            raise UsageError(explain("resolution", size, f"at least {sizes.multiple}, the model's multiple"))
        return CutRule(size * size, sizes.multiple, **more)
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if side % sizes.multiple:
            low = max(side // sizes.multiple, 1) * sizes.multiple
            near = f"try {low} or {low + sizes.multiple}"
            raise UsageError(explain("resolution", side, f"multiples of {sizes.multiple}", near))
    return CutRule(height * width, sizes.multiple, sides=(height, width), **more)


def _lowered(frames: int, sizes: SizeRule) -> int:
    return (frames - 1) // sizes.frames_multiple * sizes.frames_multiple + 1
