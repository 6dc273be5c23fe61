"""What ``genkit generate --reference`` gives: pictures, fitted to the model and recorded on the patch of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genkit.errors import UsageError, explain
from genkit.media import read_image, resized
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.text import STRENGTH, join_pairs, parse_pairs, path_and_strength
from genkit.reading import file_digest, regular

METHOD = "reference"
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


def read_references(settings: GenerateSettings, pipeline_class: str, multiple: int) -> tuple[ReferencePicture, ...]:
    """Read what ``settings.reference`` names; nothing when other attention is asked for.

    Args:
        settings: filled in, with height and width.
        pipeline_class: name of the pipeline's class.
        multiple: of height and width of the pictures that the model takes.

    Raises:
        UsageError: the method records references and none is given, a strength or box without meaning, or a second
            pass is asked for too. UnsupportedError: a pipeline whose references are not read from pictures.
        ArtifactError: a file is missing or cannot be read.
    """
    if settings.attention != METHOD:
        return ()
    if not settings.reference:
        if settings.attention_args.get("origin", "recorded") != "recorded":
            return ()
        raise UsageError("--attention reference needs --reference FILE, the picture to follow")
    if settings.upscale > 1:
        raise UsageError("--reference and --upscale exclude each other; leave one out")
    from genkit.pipelines.tasks.references.record import check_family

    check_family(pipeline_class)
    parse_box(settings.reference_box)
    found = []
    for text in settings.reference:
        path, strength = parse_reference(text)
        read = read_image(path, 1)
        picture, told = _fitted(read.frames[0], multiple, settings.height, settings.width, path)
        found.append(ReferencePicture(picture, strength, path, (*read.told, *told)))
    return tuple(found)


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


def full_places(references: Sequence[str]) -> tuple[str, ...]:
    """References as they mean the same from any folder."""
    parsed = [parse_reference(text) for text in references]
    return tuple(f"{path.resolve()}{STRENGTH}{strength:g}" for path, strength in parsed)


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


def settle(settings: GenerateSettings, pipeline: Any) -> GenerateSettings:
    """Settings whose schedule says that only the prompt's half of guidance reads the references, where halves are calls
    of their own; a schedule that names branches is kept."""
    if not settings.reference or _one_call(pipeline):
        return settings
    pairs = parse_pairs(settings.schedule, "--schedule") if settings.schedule else {}
    return settings.replace(schedule=join_pairs({"branches": "cond"} | pairs))


def record(patch: Any, pipeline: Any, references: Sequence[ReferencePicture], settings: GenerateSettings) -> None:
    """Make the pictures the references of a patch and say where they apply: in the box, and in the prompt's half of
    guidance, so that guidance acts on them too."""
    if not references:
        return
    from genkit.attention.reference.masks import box_mask
    from genkit.attention.reference.store import References
    from genkit.pipelines.tasks.references.record import record_pictures

    for number, reference in enumerate(references):
        slots = {} if settings.max_sequence_length is None else {"slots": settings.max_sequence_length}
        record_pictures(
            patch, pipeline, reference.picture[None], strength=reference.strength, name=f"reference{number}", **slots
        )
    store = References.of(patch.cache)
    box = parse_box(settings.reference_box)
    if box is not None:
        store.set_boxes(box_mask([box] * (settings.num_frames or 1), settings.height // 8, settings.width // 8))
    # Distilled UNets take the scale as an input and are called with one half.
    if _one_call(pipeline) and (settings.guidance_scale or 0) > 1 and pipeline.unet.config.time_cond_proj_dim is None:
        store.set_parts((0, 1))


def _one_call(pipeline: Any) -> bool:
    """Whether both halves of guidance go through the model in one call, the negative one first."""
    return getattr(pipeline, "unet", None) is not None
