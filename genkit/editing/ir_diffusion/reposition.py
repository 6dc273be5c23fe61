"""Reposition attention: keys and values of a reference's subject, brought to where the subject is in the scene.

The published form crops the reference's hidden states to the subject, resizes them (nearest) to the subject's box in
the scene, pastes them into zeros and projects them to keys and values that only the subject's tokens see, and there
only where something was pasted. A projection works on every token alone, and resizing by nearest neighbours only picks
tokens. So the same keys and values are the reference's own, picked: no further projection, no zeros to hide.
"""

from __future__ import annotations

import torch

from genkit.editing.ir_diffusion.masks import bounds


def reposition(reference: torch.Tensor, scene: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token of a reference comes to which place of the scene.

    Args:
        reference: bool (h, w) tokens of the subject in its reference picture.
        scene: bool (h', w') tokens of the subject in the scene; the two grids may differ.

    Returns:
        picked: int64 (n,) tokens of the reference, in the raster order of their places in the scene.
        places: int64 (n,) those places. Both are empty where either picture lacks the subject.
    """
    device = reference.device
    source, target = bounds(reference), bounds(scene)
    if source is None or target is None:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return empty, empty
    rows = _nearest(source[0], source[2], target[2] - target[0], device)
    columns = _nearest(source[1], source[3], target[3] - target[1], device)
    kept = reference[rows][:, columns]
    picked = (rows[:, None] * reference.shape[1] + columns)[kept]
    down = torch.arange(target[0], target[2], device=device)[:, None]
    across = torch.arange(target[1], target[3], device=device)
    return picked, (down * scene.shape[1] + across)[kept]


def _nearest(start: int, stop: int, count: int, device: torch.device) -> torch.Tensor:
    """The tokens of start:stop that ``count`` tokens take, as nearest resizing does."""
    return start + torch.arange(count, device=device) * (stop - start) // count


def dropped(tokens: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Tokens without a random share of them, never none of them.

    Args:
        tokens: bool (N,).
        share: probability of being left out.
        generator: of the CPU, so that every device draws the same.
    """
    drawn = torch.rand(tokens.shape, generator=generator).to(tokens.device)
    kept = tokens & (drawn >= share)
    if not kept.any() and tokens.any():
        kept[torch.where(tokens, drawn, -1).argmax()] = True
    return kept
