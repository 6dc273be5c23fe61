"""Image prompt adapters (IP-Adapter) with random weights, in the published file format, read by Diffusers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: Width of the image encoder's embedding.
WIDTH = 8
TOKENS = 4


def add_ip_adapters(pipe: Any, folder: Path, count: int = 1, *, tokens: bool = False, seed: int = 0) -> Any:
    """Give a UNet pipeline an image encoder and adapters by ``load_ip_adapter``; returns the pipeline.

    Args:
        count: how many adapters.
        tokens: of those that read the encoder's tokens (IP-Adapter Plus) instead of its embedding.
    """
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=WIDTH,
        )  # fmt: skip
        processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        encoder = CLIPVisionModelWithProjection(config).eval()
        pipe.register_modules(image_encoder=encoder, feature_extractor=processor)
        names = []
        for number in range(count):
            names.append(f"ip-adapter-{number}.safetensors")
            save_file(_weights(pipe.unet), folder / names[-1])
        pipe.load_ip_adapter([str(folder)] * count, subfolder=[""] * count, weight_name=names)
        if tokens:
            _read_tokens(pipe.unet)
    return pipe


def _weights(unet: Any) -> dict[str, torch.Tensor]:
    """One adapter's file: the projection to text tokens, and keys and values for every cross-attention layer."""
    cross = unet.config.cross_attention_dim
    found = {
        "image_proj.proj.weight": torch.randn(TOKENS * cross, WIDTH),
        "image_proj.proj.bias": torch.randn(TOKENS * cross),
        "image_proj.norm.weight": torch.ones(cross),
        "image_proj.norm.bias": torch.zeros(cross),
    }
    layers = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]
    for index, layer in enumerate(layer for layer in layers if layer.is_cross_attention):
        for which in "kv":
            found[f"ip_adapter.{2 * index + 1}.to_{which}_ip.weight"] = torch.randn(layer.inner_dim, cross) / cross**0.5
    return found


def _read_tokens(unet: Any) -> None:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    cross = unet.config.cross_attention_dim
    unet.encoder_hid_proj.image_projection_layers = torch.nn.ModuleList(
        IPAdapterPlusImageProjection(8, cross, 8, depth=1, dim_head=4, heads=2, num_queries=TOKENS).eval()
        for _ in unet.encoder_hid_proj.image_projection_layers
    )
