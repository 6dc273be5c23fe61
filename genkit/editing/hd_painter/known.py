"""What is known of the picture, in the forms that a model and its loop need: filled, in latents, in tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional

from genkit.editing.shared.model import EditModel
from genkit.media.canvas import Mask

#: Pixels around a mask in which what was made is compared with what was there.
RIM = 6
#: Largest difference, of 255, that counts as a shift of colour.
SHIFT = 16


def filled(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A picture whose unknown part continues the known one smoothly, from the finest level of averages that knows it.

    Latents next to a mask see what is inside it: this keeps what is to be replaced out of them.

    Args:
        picture: uint8 (H, W, 3).
        inside: bool (H, W), the unknown part.
    """
    found = _continued(picture.astype(np.float64), ~inside)
    return np.where(inside[..., None], np.rint(found).astype(np.uint8), picture)


def matched(made: np.ndarray, picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What was made, in the colours of the picture around it: the difference of the two outside the mask continues
    smoothly into it and is taken off, so that no edge shows where they meet.

    Args:
        made, picture: uint8 (H, W, 3).
        inside: bool (H, W); the difference is read within :data:`RIM` pixels around it, where it is a shift of colour
            (at most :data:`SHIFT`) and not an object that only one of the two shows.
    """
    difference = picture.astype(np.float64) - made
    rim = Mask(inside).grown(RIM).inside & ~inside & (np.abs(difference).max(-1) <= SHIFT)
    if not rim.any():
        return made
    corrected = made + _continued(difference, rim)
    return np.where(inside[..., None], np.clip(np.rint(corrected), 0, 255).astype(np.uint8), made)


def _continued(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values (H, W, C) where they are known, and their smooth continuation elsewhere."""
    levels, counts = [values * known[..., None]], [known.astype(np.float64)]
    while max(counts[-1].shape) > 1:
        levels.append(_halved(levels[-1]))
        counts.append(_halved(counts[-1]))
    found = np.zeros_like(levels[-1])
    for total, count in zip(reversed(levels), reversed(counts), strict=True):
        coarse = _doubled(found, count.shape)
        found = np.where(count[..., None] > 0, total / np.maximum(count, 1)[..., None], coarse)
    return found


def _doubled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Twice as large, cut to a size; between the centres of cells by straight lines."""
    for axis in (0, 1):
        before = np.concatenate([values.take([0], axis), values.take(range(values.shape[axis] - 1), axis)], axis)
        after = np.concatenate([values.take(range(1, values.shape[axis]), axis), values.take([-1], axis)], axis)
        pair = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis + 1)
        values = pair.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])
    return values[: size[0], : size[1]]


def _halved(values: np.ndarray) -> np.ndarray:
    """Sums over squares of two by two; a last single row or column counts alone."""
    height, width = (-(-side // 2) * 2 for side in values.shape[:2])
    margin = [(0, height - values.shape[0]), (0, width - values.shape[1])] + [(0, 0)] * (values.ndim - 2)
    padded = np.pad(values, margin)
    return padded.reshape(height // 2, 2, width // 2, 2, *values.shape[2:]).sum((1, 3))


def latent_mask(inside: np.ndarray, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """A mask (H, W) as (1, 1, h, w) for latents: 1 for every latent that holds an unknown pixel, else 0."""
    mask = torch.from_numpy(np.ascontiguousarray(inside)).to(device)[None, None].float()
    return functional.adaptive_max_pool2d(mask, size)


def without_border(mask: torch.Tensor) -> torch.Tensor:
    """A mask (1, 1, h, w) without the latents at its border; as it is where nothing would be left. The edge of the
    picture is no border."""
    core = 1 - functional.max_pool2d(1 - mask, 3, 1, 1)
    return core if bool(core.any()) else mask


def token_mask(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bool (h * w,): tokens of which half is unknown; where no token is, those with the largest share.

    Args:
        mask: (1, 1, H, W) in 0..1.
        grid: (h, w).
    """
    share = functional.adaptive_avg_pool2d(mask, grid).flatten()
    return share >= (share.max() / 2 if share.max() < 0.5 else 0.5)


@torch.no_grad()
def beside_latents(model: EditModel, picture: np.ndarray, inside: np.ndarray) -> torch.Tensor:
    """What a denoiser that was made to inpaint reads beside the noisy latents, (1, c, h, w): the mask, and the picture
    without its unknown part, which is grey.

    Args:
        model: with such a denoiser.
        picture: uint8 (H, W, 3) on the canvas.
        inside: bool (H, W).
    """
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[:, None].float() / 127.5 - 1
    pixels = pixels * torch.from_numpy(~inside)[None, None]
    known = model.encode_pixels(pixels)
    mask = torch.from_numpy(np.ascontiguousarray(inside))[None, None].to(known)
    assert model.record.beside is not None, "asked of denoisers that were made to inpaint"
    return model.record.beside(model.pipe, known, mask)
