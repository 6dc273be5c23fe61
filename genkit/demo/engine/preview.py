"""A small picture of latents while they are denoised, by a linear map that is fitted to the model's autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from genkit.errors import GenkitError

#: Pixels along the longer side of a preview.
SIDE = 256
#: Pixels along a side of the pictures that the map is fitted to, and how many there are.
FITTED, COUNT = 128, 4
#: Share of the mean square that keeps the fit steady where channels say the same.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Preview:
    """A map from latents to colours.

    Args:
        weights: float32 (C + 1, 3); the last row is added.
    """

    weights: Any

    @classmethod
    def fit(cls, pipeline: Any, sound: str | None = None) -> Preview | None:
        """Fit the map to what the pipeline's autoencoder makes of a few drawn patterns.

        Args:
            pipeline: a loaded pipeline.
            sound: kind of spectrogram of models with sound, see :func:`genkit.families.training.lookup.training_of`.

        Returns:
            None where no record tells how the family encodes pictures: its runs have no preview.

        Cost: encoding four pictures of 128x128, once for a loaded model.
        """
        import torch

        from genkit.families.training.base import Media
        from genkit.families.training.lookup import training_of

        rows, colours = [], []
        try:
            record = training_of(pipeline, sound)
            if record.needs:
                return None
            with torch.no_grad():
                for index in range(COUNT):
                    pixels = torch.from_numpy(pattern(index, FITTED)).permute(2, 0, 1)
                    found = record.encode(pipeline, Media((pixels * 2 - 1)[:, None]), None)[record.streams[0]]
                    latents = found.float().cpu().flatten(1, -3) if found.dim() > 3 else found.float().cpu()
                    shape = (latents.shape[-2], latents.shape[-1])
                    rows.append(latents.reshape(latents.shape[0], -1).T)
                    small = torch.nn.functional.adaptive_avg_pool2d(pixels[None], shape)[0]
                    colours.append(small.reshape(3, -1).T)
        except GenkitError:
            return None
        x = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1)
        ridge = _RIDGE * x.pow(2).mean() * len(x) * torch.eye(x.shape[1])
        return cls(torch.linalg.solve(x.T @ x + ridge, x.T @ torch.cat(colours)).numpy())

    def __call__(self, latents: Any, grid: tuple[int, int, int] | None = None) -> np.ndarray | None:
        """A picture, uint8 (H, W, 3), of the first row; of a clip its middle frame.

        Args:
            latents: (B, C, H, W), (B, C, T, H, W), or packed (B, N, C * p * p).
            grid: (T, H, W) in tokens, which packed latents need.

        Returns:
            None for latents of another form.
        """
        from PIL import Image

        values = latents[0].detach().float().cpu().numpy()
        channels = len(self.weights) - 1
        if values.ndim == 2:
            found = _unpacked(values, channels, grid)
            if found is None:
                return None
            values = found
        if values.ndim == 4:
            values = values[:, values.shape[1] // 2]
        if values.ndim != 3 or values.shape[0] != channels:
            return None
        colours = np.tensordot(values, self.weights[:-1], (0, 0)) + self.weights[-1]
        colours = np.nan_to_num(colours, nan=0.0).clip(0, 1)
        height, width = colours.shape[:2]
        scale = SIDE / max(height, width)
        small = Image.fromarray((colours * 255).round().astype(np.uint8))
        return np.asarray(small.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))


def _unpacked(tokens: np.ndarray, channels: int, grid: tuple[int, int, int] | None) -> np.ndarray | None:
    """Packed latents (N, C * p * p) as (C, T, H p, W p); None when they are not packed so."""
    count, size = tokens.shape
    side = round((size / channels) ** 0.5)
    if grid is None or count != grid[0] * grid[1] * grid[2] or channels * side * side != size:
        return None
    frames, height, width = grid
    cells = tokens.reshape(frames, height, width, channels, side, side)
    return cells.transpose(3, 0, 1, 4, 2, 5).reshape(channels, frames, height * side, width * side)


def pattern(seed: int, side: int) -> np.ndarray:
    """Coloured patches on a slope of colour, float32 (side, side, 3) in 0..1; the same for the same seed."""
    drawn = np.random.default_rng(seed)
    corners = drawn.random((2, 3), dtype=np.float32)
    slope = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    picture = np.broadcast_to(corners[0] * (1 - slope) + corners[1] * slope, (side, side, 3)).copy()
    for _ in range(24):
        top, left = drawn.integers(0, side, 2)
        height, width = drawn.integers(side // 8, side // 2, 2)
        picture[top : top + height, left : left + width] = drawn.random(3, dtype=np.float32)
    return picture
