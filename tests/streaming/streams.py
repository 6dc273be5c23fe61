"""Tiny pipelines of the real classes for streams, and what a stream computes, from scratch and without a cache."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import tiny_pipelines
import torch

from genkit.attention.method import Method

SIZE = {"height": 32, "width": 32, "steps": 3, "max_sequence_length": 8}


def wan():
    """WanPipeline with random weights."""
    pipe = tiny_pipelines.wan()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def skyreels(block: int = 1, **more):
    """SkyReels-V2's pipeline of diffusion forcing; with ``block`` above 1 its model is block-causal."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel

    parts = tiny_pipelines.wan().components
    names = (
        "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim",
        "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "rope_max_seq_len",
    )  # fmt: skip
    config = {name: parts["transformer"].config[name] for name in names}
    torch.manual_seed(1)
    model = SkyReelsV2Transformer3DModel(**config, num_frame_per_block=block, **more).eval()
    kept = {name: parts[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    pipe = SkyReelsV2DiffusionForcingPipeline(transformer=model, **kept)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True, eq=False)
class Naive(Method):
    """A chunk over its window, from lists of everything that ever was: every key is rotated anew in every call.

    Args:
        window: of the stream.
        past: branch -> layer -> list of (keys, values) per frame.
        now: branch, latent frames made so far, whether the pass is the clean one, and the model's tables.
    """

    window: object = None
    past: dict = field(default_factory=dict)
    now: dict = field(default_factory=dict)

    name: ClassVar[str] = "naive"
    roles: ClassVar[tuple[str, ...]] = ("self",)

    def attend(self, q, k, v, site, cache):
        now, tokens = self.now, q.shape[1] // self.window.chunk
        past = self.past.setdefault(now["branch"], {}).setdefault(site.name, [])
        chosen = [past[frame] for frame in self.window.kept(now["made"])]
        keys = torch.cat([*[pair[0] for pair in chosen], k], 1)
        values = torch.cat([*[pair[1] for pair in chosen], v], 1)
        if now["clean"]:
            past += list(zip(k.split(tokens, 1), v.split(tokens, 1), strict=True))
        angles = now["tables"](self.window.positions(now["made"]))
        keys, asked = _turned(keys, angles), _turned(q, [table[:, -q.shape[1] :] for table in angles])
        scores = torch.einsum("bqhd,bkhd->bhqk", asked, keys) * q.shape[-1] ** -0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values.double()).to(q.dtype)


def _turned(x, tables):
    cos, sin = (table[..., ::2].double() for table in tables)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def sampled(pipe, steps, noise, answer):
    """Clean latents by the pipeline's scheduler."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    latents = noise
    for time in scheduler.timesteps:
        latents = scheduler.step(answer(latents, time), time, latents, return_dict=False)[0]
    return latents
