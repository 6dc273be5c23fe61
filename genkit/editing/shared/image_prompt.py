"""Image prompt adapters (IP-Adapter) of a pipeline: what they are told, and how strongly each acts in which layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from genkit.errors import UnsupportedError


def adapters(pipe: Any) -> int:
    """How many image prompt adapters a pipeline has loaded; 0 for pipelines that take none."""
    network = getattr(pipe, "unet", None)
    if network is None or network.config.get("encoder_hid_dim_type") != "ip_image_proj":
        return 0
    return len(network.encoder_hid_proj.image_projection_layers)


def embedding(pipe: Any, image: Any, adapter: int = 0) -> torch.Tensor:
    """What the image encoder makes of a picture: (1, 1, C), or (1, 1, tokens, C) for adapters that read tokens.

    Args:
        pipe: a pipeline with adapters and an image encoder. image: a PIL picture. adapter: which of them reads it.

    Raises:
        UnsupportedError: the pipeline has no image encoder.
    """
    if getattr(pipe, "image_encoder", None) is None:
        raise UnsupportedError(
            f"{type(pipe).__name__} has an image prompt adapter and no image_encoder to read pictures; load the "
            "encoder that the adapter was trained with"
        )
    layer = pipe.unet.encoder_hid_proj.image_projection_layers[adapter]
    states = type(layer).__name__ not in ("ImageProjection", "MultiIPAdapterImageProjection")
    found, _ = pipe.encode_image(image, pipe._execution_device, 1, states)
    return found[:, None]


@contextmanager
def image_prompts(pipe: Any, embeds: Sequence[torch.Tensor], scales: Sequence[dict[str, float]]) -> Iterator[None]:
    """Let every denoiser call read image prompts meanwhile; the adapters' own scales come back afterwards.

    Args:
        pipe: with adapters.
        embeds: of every adapter (rows of the calls, pictures, ...); a single row serves calls of any number of rows.
        scales: of every adapter: regular expression of cross-attention layers -> scale; 0 elsewhere.
    """
    network = pipe.unet
    before: list[tuple[Any, Any]] = []
    for name, processor in network.attn_processors.items():
        if hasattr(processor, "scale"):
            before.append((processor, processor.scale))
            processor.scale = [
                next((value for pattern, value in each.items() if re.search(pattern, name)), 0.0) for each in scales
            ]

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        rows = [
            each.to(sample).expand(len(sample), *each.shape[1:]) if len(each) == 1 else each.to(sample)
            for each in embeds
        ]
        told = {**(kwargs.get("added_cond_kwargs") or {}), "image_embeds": rows}
        return args, {**kwargs, "added_cond_kwargs": told}

    hook = network.register_forward_pre_hook(tell, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        for processor, scale in before:
            processor.scale = scale
