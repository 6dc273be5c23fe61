"""What one edit is: source, target, prompts and the pixels that should stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genkit.world.picture_scene import Picture, Placement
from genkit.world.scene import Scene, Tracks

COLOUR, SHAPE, TEXTURE, BACKGROUND, ADD, REMOVE = "colour", "shape", "texture", "background", "add", "remove"
#: Edits of pictures, and those of clips.
PICTURE_KINDS: tuple[str, ...] = (COLOUR, SHAPE, TEXTURE, BACKGROUND, ADD, REMOVE)
CLIP_KINDS: tuple[str, ...] = (COLOUR, SHAPE, BACKGROUND)
#: Pixels around what changes that may change with it: outlines are mixtures, and decoders reach as far.
RIM = 4


@dataclass(frozen=True)
class Edit:
    """An edit and its right answer.

    Args:
        kind: of :data:`PICTURE_KINDS`.
        source, target: uint8 (H, W, 3), or (F, H, W, 3) for a clip; the same placement drawn twice.
        source_prompt, target_prompt: canonical captions.
        stay: bool (H, W) or (F, H, W): pixels that should stay as they are in the source.
        before, after: what source and target show.
        placement: where the objects of ``after`` are; of a clip its tracks.
        actor: index in ``after`` of the object that is changed or added; None for an edit of the background or where
            the object is no longer there.
        phrase: words of the target prompt that name what is changed, colour and shape or the background; of a removed
            object those of the source prompt.
    """

    kind: str
    source: np.ndarray
    target: np.ndarray
    source_prompt: str
    target_prompt: str
    stay: np.ndarray
    before: Picture | Scene
    after: Picture | Scene
    placement: Placement | Tracks
    actor: int | None
    phrase: str

    @property
    def clip(self) -> bool:
        """Whether source and target have frames."""
        return self.source.ndim == 4


@dataclass(frozen=True)
class PictureEdit(Edit):
    """An edit of a picture."""

    before: Picture
    after: Picture
    placement: Placement


@dataclass(frozen=True)
class ClipEdit(Edit):
    """An edit of a clip."""

    before: Scene
    after: Scene
    placement: Tracks
