"""The picture and the mask of a run, read once before any weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genkit.editing.hd_painter.place import LARGEST, Place, native_side, usual_context
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.families.prompts import UPSCALER
from genkit.media.canvas import Mask, read_mask, read_still
from genkit.models import check_folder, locate
from genkit.models.check import read_part_config
from genkit.pipelines.hub import fetch
from genkit.pipelines.tasks.inpaint.choice import made_for_it
from genkit.reading import file_digest, regular
from genkit.reading.files import place, user_path

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

#: Arguments of inpainting pipelines' calls that the task gives.
INPUTS = ("image", "mask_image")
#: Pixels of a picture at most. Only the part around the mask goes through the model.
MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Given:
    """What is worked on.

    Args:
        picture: uint8 (H, W, 3).
        mask: what of it is made anew.
        files: of picture and mask.
        multiple: what the sides of the working size are multiples of.
        least: height and width that the model sees at least.
        longest: longer side of the working size.
        context: pixels around the mask that the model sees.
        size: height and width that are worked on.
        upscaler: folder of the pipeline that draws large parts; None without.
        factor: how many times larger it draws this one; 1 where it is not needed.
        told: what was chosen, one line each.
    """

    picture: np.ndarray
    mask: Mask
    files: tuple[Path, Path]
    multiple: int
    least: tuple[int, int]
    longest: int
    context: int
    size: tuple[int, int]
    told: tuple[str, ...]
    upscaler: Path | None = None
    factor: int = 1

    def fingerprints(self) -> dict[str, str]:
        """Digests of the files, for the record."""
        digests = [file_digest(path)[:16] for path in self.files]
        return {"image_fingerprint": digests[0], "mask_fingerprint": digests[1]}


def find(settings: InpaintSettings) -> tuple[Path, Path]:
    """The files of picture and mask.

    Raises:
        UsageError: one is not given. ArtifactError: it does not exist or is no ordinary file.
    """
    if settings.image is None:
        raise UsageError("nothing to inpaint: give a picture, genkit inpaint IMAGE --mask FILE --prompt ...")
    if settings.mask is None:
        raise UsageError("--mask: say with a picture of the same size, white in it, which part is made anew")
    picture, mask = user_path(settings.image, "IMAGE"), user_path(settings.mask, "--mask")
    return regular(picture, "IMAGE"), regular(mask, "--mask")


def read_given(settings: InpaintSettings, files: tuple[Path, Path], model: Model, upscaler: Path | None) -> Given:
    """Read picture and mask for a model.

    Args:
        settings: filled in. files: from :func:`find`. model: that inpaints. upscaler: from :func:`find_upscaler`.

    Raises:
        UsageError: a mask of another size, or one that marks nothing.
        ArtifactError: a file that cannot be decoded, or has more pixels than are worked on.
    """
    still = read_still(files[0], MOST_PIXELS, "IMAGE")
    mask = read_mask(
        files[1], still.pixels.shape[:2], channel=settings.mask_channel, invert=settings.mask_invert,
        grow=settings.mask_grow, feather=settings.feather, pixels=MOST_PIXELS, what="--mask",
    )  # fmt: skip
    limits = model.sidecar.limits
    side = native_side(model.config)
    height, width = still.pixels.shape[:2]
    least = (limits.get("min_height", min(side or 1, height)), limits.get("min_width", min(side or 1, width)))
    most = min(limits.get("max_height", 1 << 16), limits.get("max_width", 1 << 16))
    usual = most if "max_height" in limits or side is None else LARGEST * side
    longest = settings.longest or usual
    multiple = 8 if model.rule is None else model.rule.multiple
    context = settings.context
    if context is None:
        context = usual_context(mask, made_for_it(model))
    factor = 1 if upscaler is None else _factor(upscaler)
    chosen = Place.of(still.pixels, mask, multiple, context, least, longest, factor)
    told = [*still.told, *mask.told, *chosen.told(still.pixels)]
    if factor > 1 and chosen.factor == 1:
        told.append(f"the upscaler is not needed: the part around the mask is no larger than {longest} pixels")
    return Given(
        still.pixels, mask, files, multiple, least, longest, context, chosen.size, tuple(told), upscaler, chosen.factor
    )


def find_upscaler(name: str | None) -> Path | None:
    """The folder of the upscaler; a hub id is downloaded if the cache does not hold it.

    Raises:
        UnsupportedError: another kind of pipeline. UsageError, ArtifactError: as for ``--model``.
    """
    if name is None:
        return None
    folder = fetch(locate(name, "--upscaler"))
    kind = check_folder(folder)["_class_name"]
    if kind != UPSCALER:
        raise UnsupportedError(f"--upscaler takes a {UPSCALER} (Stable Diffusion x4 upscaler), and {name} is a {kind}")
    return folder


def _factor(upscaler: Path) -> int:
    """How many times larger an upscaler draws."""
    levels = read_part_config(upscaler, "vae").get("block_out_channels")
    if not isinstance(levels, list) or not 1 < len(levels) < 8:
        raise ArtifactError(
            f"{place(upscaler / 'vae' / 'config.json')} tells no block_out_channels; get the folder again"
        )
    return 2 ** (len(levels) - 1)
