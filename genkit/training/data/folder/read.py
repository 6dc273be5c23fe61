"""The pixels, sound and masks of a sample."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from genkit.errors import UsageError, counted
from genkit.families.training.base import Media
from genkit.media.images import crop, resized
from genkit.media.read_image import read_image
from genkit.media.read_video import probe_video, read_chosen
from genkit.media.sound import read_sound
from genkit.reading.files import place
from genkit.training.data.folder.cuts import Cut
from genkit.training.data.folder.items import VIDEOS
from genkit.training.data.pixels import as_tensor
from genkit.training.data.source import SILENCE

#: Ratios of sides of a mask and its sample may differ by this share: files round.
_RATIO = 0.02
#: Samples per second of a silence; nothing is lost in it at any rate.
_SILENT_RATE = 16_000


def read_pixels(cut: Cut) -> np.ndarray:
    """The pixels, uint8 (frames, height, width, 3): scaled to cover the bucket and cut in the middle.

    Raises:
        ArtifactError: the file cannot be decoded, or ends before the sample does.
    """
    sides = (cut.bucket.height, cut.bucket.width)
    if cut.item.video:
        video = probe_video(cut.item.path)
        *scaled, top, left = crop(video.height, video.width, sides)
        frames = read_chosen(video, cut.frames, (scaled[0], scaled[1]), whole=True)
    else:
        frames = read_image(cut.item.path, 1).frames
        *scaled, top, left = crop(frames.shape[1], frames.shape[2], sides)
        if tuple(scaled) != frames.shape[1:3]:
            frames = resized(frames, scaled[0], scaled[1])
    return frames[:, top : top + sides[0], left : left + sides[1]]


def read_sample(cut: Cut) -> tuple[Media, float]:
    """A sample as a family's record encodes it, and the share of its time in which there is sound."""
    given = {role: _tensor(cut.of(path)) for role, path in cut.item.given}
    sound, rate, heard = (None, None, 0.0) if cut.sound is None else _read_sound(cut)
    _, _, top, left = crop(*cut.original, (cut.bucket.height, cut.bucket.width))
    fps = None if cut.fps is None else float(cut.fps)
    return Media(_tensor(cut), fps, sound, rate, given, cut.original, (top, left)), heard


def _tensor(cut: Cut) -> torch.Tensor:
    return as_tensor(read_pixels(cut)[None])[0]


def _read_sound(cut: Cut) -> tuple[torch.Tensor, int, float]:
    """Sound (channels, samples) exactly as long as the clip, its rate, and the share of it that the file has."""
    if cut.sound == SILENCE:
        return torch.zeros(1, round(cut.seconds * _SILENT_RATE)), _SILENT_RATE, 1.0
    # Decoding stops at the end of a block of samples; a little more is asked for and cut away.
    sound, rate = read_sound(cut.item.path, float(cut.start + cut.seconds) + 0.1)
    begin, wanted = round(cut.start * rate), round(cut.seconds * rate)
    part = sound[begin : begin + wanted]
    padded = np.pad(part, ((0, wanted - len(part)), (0, 0)))
    return torch.from_numpy(np.ascontiguousarray(padded.T)), rate, len(part) / wanted


def sound_mask(latents: torch.Tensor, heard: float) -> torch.Tensor:
    """Weights (1, L, 1, ...) of latents (C, L, ...) of a sound of which only the beginning was recorded."""
    length = latents.shape[1]
    weights = (heard * length - torch.arange(length)).clamp(0, 1)
    return weights.view(1, length, *[1] * (latents.dim() - 2))


def check_mask(cut: Cut) -> None:
    """Refuse a mask of another shape or length than its sample's, or one that leaves nothing of it."""
    path = cut.item.mask
    assert path is not None, "asked of samples with a mask"
    height, width, frames = _shape(path)
    if abs(math.log(height / width) - math.log(cut.original[0] / cut.original[1])) > _RATIO:
        raise UsageError(
            f"{place(path)} is a mask of {width}x{height} pixels for {cut.original[1]}x{cut.original[0]}; allowed: the "
            "same size, or one of the same shape"
        )
    _check_length(path, frames, cut)
    if not cut.item.unmasked and not read_pixels(cut.of(path)).any():
        raise UsageError(
            f"{place(path)} is black in all of the sample: nothing would be trained; make it white in part"
        )


def check_given(cut: Cut) -> list[str]:
    """What is to be told about pictures that go with a sample; refuses clips of another length."""
    told = []
    for role, path in cut.item.given:
        height, width, frames = _shape(path)
        _check_length(path, frames, cut)
        if abs(math.log(height / width) - math.log(cut.original[0] / cut.original[1])) > _RATIO:
            told.append(f"{role} {place(path.name)} has another shape and is cut to that of its sample")
    return told


def _shape(path: Path) -> tuple[int, int, int | None]:
    """Height, width, and frames of a clip."""
    if path.suffix.lower() in VIDEOS:
        video = probe_video(path)
        return video.height, video.width, len(video.starts)
    return *read_image(path, 1).frames.shape[1:3], None


def _check_length(path: Path, frames: int | None, cut: Cut) -> None:
    if frames is None:
        return
    if not cut.item.video:
        raise UsageError(f"{place(path)} is a clip and goes with a picture; allowed: a picture")
    own = len(probe_video(cut.item.path).starts)
    if frames != own:
        raise UsageError(
            f"{place(path)} has {counted(frames, 'frame')} and goes with a clip of {own}; allowed: as many"
        )


def mask_of(cut: Cut, latents: torch.Tensor) -> torch.Tensor:
    """Weights (1, h, w) or (1, T, h, w) of latents (C, ...): the mask's mean brightness over what each stands for.
    The first latent frame stands for the first frame, the others for as many each."""
    assert cut.item.mask is not None, "asked of samples with a mask"
    pixels = torch.from_numpy(read_pixels(cut.of(cut.item.mask)).astype(np.float32)).mean(-1) / 255
    small = adaptive_avg_pool2d(pixels[:, None], latents.shape[-2:])[:, 0]
    if latents.dim() == 3:
        return small[:1]
    count = latents.shape[1]
    if len(small) == 1 or count == 1:
        return small[:1].expand(count, -1, -1)[None].contiguous()
    groups = [small[:1], *small[1:].chunk(count - 1)]
    return torch.stack([group.mean(0) for group in groups])[None]
