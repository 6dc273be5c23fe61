"""Vision guidance: what the edited picture's image embedding should be, from the source's and two texts."""

from __future__ import annotations

import torch


def edited_embedding(image: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``image + target' - source'``, the texts scaled to the length of the image's embedding.

    Args:
        image: (B, C) projected CLIP embedding of the source picture.
        source, target: (B, C) projected CLIP embeddings of the two prompts, from the same CLIP model.

    Source: ViMAEdit. Texts of equal embeddings leave the image's as it is.
    """
    length = image.norm(dim=-1, keepdim=True)
    unit = [text / text.norm(dim=-1, keepdim=True).clamp_min(1e-12) for text in (source, target)]
    return image + length * (unit[1] - unit[0])
