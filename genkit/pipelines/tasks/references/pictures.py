"""What ``genkit generate --reference`` gives: pictures, fitted to the model and recorded on the patch of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import UsageError, explain
from genkit.media import read_image, resized
from genkit.reading import file_digest, regular
from genkit.reading.strength import STRENGTH, path_and_strength, strength_text

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.session import Run
    from genkit.pipelines.settings import GenerateSettings

_BOX = "left,top,right,bottom as shares of the canvas from 0 to 1, such as 0.25,0.25,0.75,0.75"


@dataclass(frozen=True)
class ReferencePicture:
    """A picture to follow.

    Args:
        picture: uint8 (H, W, 3), of a size that the model takes.
        strength: factor of its share.
        source: the file.
        told: what was changed to make it fit, one line or none.
    """

    picture: np.ndarray
    strength: float
    source: Path
    told: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A short digest of the file."""
        return file_digest(self.source)[:16]


@dataclass(frozen=True)
class Inputs:
    """What a run follows.

    Args:
        pictures: fitted to the model.
        box: where they apply, as shares of the canvas; None = everywhere.
        one_call: whether both halves of guidance go through the model in one call, the negative one first.
        halves: whether only the prompt's half of such a call reads the pictures.
    """

    pictures: tuple[ReferencePicture, ...]
    box: tuple[float, ...] | None
    one_call: bool
    halves: bool


def parse_references(settings: GenerateSettings) -> tuple[list[tuple[Path, float]], tuple[float, ...] | None]:
    """Files with their strengths, and the box.

    Raises:
        UsageError: no reference, or a strength or box without meaning. ArtifactError: a file that does not exist.
    """
    if not settings.reference:
        raise UsageError("--attention reference needs --reference FILE, the picture to follow")
    return [parse_reference(text) for text in settings.reference], parse_box(settings.reference_box)


def read_pictures(
    parsed: Sequence[tuple[Path, float]], box: tuple[float, ...] | None, settings: GenerateSettings, model: Model
) -> Inputs:
    """Read the pictures and fit them to the run.

    Args:
        parsed, box: from :func:`parse_references`.
        settings: filled in, with height and width.
        model: that the run is made with.

    Raises:
        UnsupportedError: a pipeline whose references are not read from pictures.
        ArtifactError: a file cannot be read.
    """
    from genkit.pipelines.tasks.references.record import check_family

    check_family(model.class_name)
    multiple = 8 if model.rule is None else model.rule.multiple
    found = []
    for path, strength in parsed:
        read = read_image(path, 1, what="--reference")
        picture, told = _fitted(read.frames[0], multiple, settings.height, settings.width, path)
        found.append(ReferencePicture(picture, strength, path, (*read.told, *told)))
    one_call = "unet" in model.parts
    # Distilled UNets take the scale as an input and are called with one half.
    halves = one_call and (settings.guidance_scale or 0) > 1 and model.config("unet").get("time_cond_proj_dim") is None
    return Inputs(tuple(found), box, one_call, halves)


def fingerprints(inputs: Inputs) -> dict[str, list[str]]:
    """Digests of the pictures, for the record."""
    return {"reference_fingerprints": [each.fingerprint() for each in inputs.pictures]}


def parse_reference(text: str) -> tuple[Path, float]:
    """``"picture.png[@strength]"`` -> path and strength (1.0 when not given).

    Raises:
        UsageError: the strength is no number of 0 or more. ArtifactError: the file does not exist.
    """
    path, strength = path_and_strength(text, "--reference", low=0)
    return regular(path, "--reference"), strength


def parse_box(text: str | None) -> tuple[float, ...] | None:
    """``"left,top,right,bottom"`` as shares of the canvas -> four numbers; None for None."""
    if text is None:
        return None
    try:
        box = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(explain("--reference-box", text, _BOX)) from error
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UsageError(explain("--reference-box", text, _BOX))
    return box


def full_places(parsed: Sequence[tuple[Path, float]]) -> tuple[str, ...]:
    """References as they mean the same from any folder."""
    return tuple(f"{path.resolve()}{STRENGTH}{strength_text(strength)}" for path, strength in parsed)


def _fitted(
    picture: np.ndarray, multiple: int, height: int, width: int, path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Shrunk into the canvas where it is larger, its proportions kept as far as the model's sizes allow."""
    own = picture.shape[:2]
    scale = min(1.0, height / own[0], width / own[1])
    size = tuple(max(multiple, round(side * scale / multiple) * multiple) for side in own)
    if size == own:
        return picture, ()
    told = f"the reference {path.name} was resized from {own[1]}x{own[0]} to {size[1]}x{size[0]}"
    return resized(picture[None], *size)[0], (told,)


def record(patch: Any, run: Run) -> None:
    """Make the pictures the references of a patch and say where they apply: in the box, and in the prompt's half of
    guidance, so that guidance acts on them too."""
    from genkit.attention.reference.store import References

    settings, inputs = run.settings, run.request.inputs
    record_all(patch, run, inputs)
    store = References.of(patch.cache)
    if inputs.box is not None:
        store.follow([[inputs.box] * (settings.num_frames or 1)], settings.height, settings.width)
    if inputs.halves:
        store.set_parts((0, 1))


def record_all(patch: Any, run: Run, inputs: Inputs) -> None:
    """Make the pictures the references of a patch."""
    from genkit.pipelines.tasks.references.record import record_pictures

    settings = run.settings
    slots = {} if settings.max_sequence_length is None else {"slots": settings.max_sequence_length}
    for number, each in enumerate(inputs.pictures):
        record_pictures(
            patch, run.pipeline, each.picture[None], strength=each.strength, name=f"reference{number}", **slots
        )
