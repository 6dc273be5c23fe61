"""Image prompt adapters (IP-Adapter) of a pipeline: what they are told, and how strongly each acts in which layer."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from genkit.errors import UnsupportedError


def adapters(pipe: Any) -> int:
    """How many image prompt adapters a pipeline has loaded; 0 for pipelines that take none."""
    network = getattr(pipe, "unet", None)
    # Loading an adapter sets an attribute of the configuration, which its keys do not show.
    if network is None or getattr(network.config, "encoder_hid_dim_type", None) != "ip_image_proj":
        return 0
    return len(network.encoder_hid_proj.image_projection_layers)


def check_adapters(pipe: Any) -> None:
    """Refuse image prompt adapters of transformers (Flux, Stable Diffusion 3), which no method tells a picture.

    Raises:
        UnsupportedError: one is loaded.
    """
    network = getattr(pipe, "transformer", None)
    if any(getattr(network, name, None) is not None for name in ("encoder_hid_proj", "image_proj")):
        raise UnsupportedError(
            f"{type(pipe).__name__} has an image prompt adapter, which editing reads on UNets only; call "
            "pipe.unload_ip_adapter() first"
        )


#: Denoisers that are told image prompts at present.
_TOLD: weakref.WeakSet[Any] = weakref.WeakSet()
#: What projects an image's embedding, or the tokens of the image encoder, to text tokens.
_OF_EMBEDDINGS = ("ImageProjection", "MultiIPAdapterImageProjection")
_OF_TOKENS = ("IPAdapterFullImageProjection", "IPAdapterPlusImageProjection")


def silenced(pipe: Any) -> AbstractContextManager[None]:
    """A context in which image prompt adapters do not act, unless somebody tells them pictures meanwhile.

    A UNet with adapters cannot be called without image prompts; methods that have none to give call it in here.

    Raises:
        UnsupportedError: an adapter that is told something else than a picture.
    """
    count = adapters(pipe)
    if not count or pipe.unet in _TOLD:
        return nullcontext()
    return image_prompts(pipe, [_nothing(pipe, number) for number in range(count)], [{}] * count)


def _nothing(pipe: Any, adapter: int) -> torch.Tensor:
    """Zeros in place of :func:`embedding`."""
    layer = pipe.unet.encoder_hid_proj.image_projection_layers[adapter]
    kind = type(layer).__name__
    width = next((part.in_features for part in layer.modules() if isinstance(part, torch.nn.Linear)), None)
    if width is None or kind not in (*_OF_EMBEDDINGS, *_OF_TOKENS):
        raise UnsupportedError(
            f"{type(pipe).__name__} has an image prompt adapter of the kind {kind}, which is told more than a picture; "
            "call pipe.unload_ip_adapter() first"
        )
    return torch.zeros(1, 1, width) if kind in _OF_EMBEDDINGS else torch.zeros(1, 1, 1, width)


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
    states = type(layer).__name__ not in _OF_EMBEDDINGS
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
    outer = network in _TOLD
    _TOLD.add(network)
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
        if not outer:
            _TOLD.discard(network)
        for processor, scale in before:
            processor.scale = scale
