"""Training toy-video: a text encoder and a Wan transformer on latents of the toy world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from genkit.families.training.objectives import Flow, denoising_loss, draw_levels
from genkit.training.data.pool import Sample
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.data.world.features import FEATURES
from genkit.training.engine.curriculum import Stage, batch_for, draw_size
from genkit.training.engine.loop import process_rank
from genkit.training.engine.repa import REPAHead
from genkit.training.toys.shared.padding import PaddedCrossAttention, padding_bias
from genkit.training.toys.shared.text import build_text_encoder, build_word_tokenizer
from genkit.training.toys.video.given import draw_kind, last_pictures, with_given
from genkit.world.caption import caption

TEXT_WIDTH = 128
PATCH = 2
TRANSFORMER = {
    "patch_size": [1, PATCH, PATCH],
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 256,
    "ffn_dim": 1024,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 256,
}
# Text slots the pipeline may use; every one occurs in training.
FULL_LENGTHS = (64, 64, 128, 226, 512)
ALIGNED_BLOCK = 2
# Outlines are drawn at low noise levels: a quarter of the sampling steps, and with shift 4 alone 8% of the samples.
EVEN_LEVELS = 0.5
OBJECTIVE = Flow()


class ToyVideo(nn.Module):
    """Text encoder, transformer and alignment read-out, trained together."""

    def __init__(self, latent_channels: int):
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.tokenizer = build_word_tokenizer()
        self.text_encoder = build_text_encoder(len(self.tokenizer), TEXT_WIDTH)
        self.transformer = WanTransformer3DModel(
            in_channels=latent_channels, out_channels=latent_channels, **TRANSFORMER
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        width = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
        self.alignment = REPAHead(self.transformer.blocks[ALIGNED_BLOCK], width, FEATURES)
        self.padded = PaddedCrossAttention()
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.padded)

    def read(self, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers and their validity, (B, slots), with at least one padding slot per row."""
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids, mask = (torch.nn.functional.pad(part, (0, 1)) for part in (batch.input_ids, batch.attention_mask))
        return ids.to(device), mask.to(device)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, full: int):
        """Predicted velocity.

        Args:
            noisy: (B, C, T, H, W) latents at noise level ``sigma``.
            sigma: (B,) in 0..1, or (B, T) where latent frames have levels of their own.
            ids, mask: (B, slots) token numbers and their validity; at least one padding slot per row.
            full: text slots the padding stands for.
        """
        states = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        self.padded.bias = padding_bias(mask.sum(1), ids.shape[1], full)
        if sigma.ndim == 2:
            sigma = sigma.repeat_interleave(noisy[0, 0, 0].numel() // (PATCH * PATCH), 1)
        return self.transformer(noisy, OBJECTIVE.timesteps(sigma), states, return_dict=False)[0]


def sizes(*rows: tuple[int, int, int, float]) -> tuple[tuple[ClipSize, float], ...]:
    """Shorthand: (frames, height, width, probability) rows."""
    return tuple((ClipSize(*row[:3]), row[3]) for row in rows)


# Share of the budget, clip sizes. Objects keep their size in pixels, only the canvas grows. Outlines are learned where
# an object fills the canvas, at a tenth of a large clip's tokens; motion on short clips; the rest is for size.
STAGES = (
    Stage(0.0, sizes((1, 64, 64, 0.3), (5, 64, 64, 0.15), (5, 96, 96, 0.2), (9, 96, 96, 0.35))),
    Stage(0.3, sizes((1, 64, 64, 0.12), (9, 96, 96, 0.5), (17, 96, 96, 0.28), (9, 128, 128, 0.1))),
    Stage(
        0.68,
        sizes((1, 96, 96, 0.1), (9, 96, 96, 0.1), (17, 96, 96, 0.25), (17, 128, 128, 0.4), (25, 128, 128, 0.15)),
    ),
    Stage(
        0.88,
        sizes(
            (25, 128, 128, 0.5),
            (17, 128, 128, 0.25),
            (17, 96, 96, 0.1),
            (25, 256, 256, 0.06),
            (17, 192, 192, 0.06),
            (1, 128, 128, 0.03),
        ),
    ),
)


def text_batch(model: ToyVideo, samples: list[Sample], rng: np.random.Generator, device, empty: float = 0.1):
    """Fresh captions of samples, a tenth of them empty, as (ids, mask) with at least one padding slot."""
    texts = []
    for sample in samples:
        picture = sample.latents.shape[1] == 1
        texts.append("" if rng.random() < empty else caption(sample.scene, rng, picture=picture))
    return model.read(texts, device)


def diffusion_loss(
    pool: LatentPool,
    model: ToyVideo,
    seed: int,
    tokens: int = 3600,
    shift: float = 3.0,
    stages: tuple[Stage, ...] = STAGES,
    align: float = 0.5,
):
    """The loss function handed to the training loop.

    Args:
        pool: where samples come from, with their last pictures.
        model: the unwrapped module, for its tokenizer.
        seed: of captions, sizes and noise.
        tokens: latent tokens per step; the batch is as large as they allow, at least 4.
        shift: of the noise levels.
        stages: clip sizes over the budget.
        align: weight of the alignment loss at the start; falls linearly to zero at 80% of the budget.
    """

    def loss_at(wrapped: nn.Module, step: int, progress: float):
        # All processes of a distributed run draw the same size, and everything else for themselves.
        shared, rng = np.random.default_rng((seed, step)), np.random.default_rng((seed, step, process_rank()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        size = draw_size(stages, progress, shared)
        count = batch_for(size, tokens)
        samples = pool.draw(size, count)
        device = next(wrapped.parameters()).device
        latents = torch.stack([sample.latents for sample in samples]).to(device).float()
        ids, mask = text_batch(model, samples, rng, device)
        sigma = draw_levels(count, shift, generator, EVEN_LEVELS).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy, target = OBJECTIVE.noised(latents, noise, sigma)
        levels, weights = sigma, None
        frames = latents.shape[2]
        kind = draw_kind(frames, shared)
        if kind is not None:
            last = last_pictures(samples).to(device)
            given = with_given(kind, latents, noisy, sigma, last, int(shared.integers(1, frames)))
            noisy, levels, weights = given.latents, given.levels, given.free.float().view(1, 1, -1, 1, 1)
        full = int(rng.choice(FULL_LENGTHS))
        answer = wrapped(noisy, levels, ids, mask, full)[:, :, :frames]
        loss, error = denoising_loss(answer, target, sigma, weights)
        figures = {"velocity" if kind is None else "given": error.mean().item()}
        # Computed even at weight zero: in a distributed run every parameter must take part in every step.
        features = torch.stack([sample.features for sample in samples]).to(device)
        aligned = model.alignment.loss(features)
        figures["align"] = aligned.item()
        loss = loss + align * max(0.0, 1 - progress / 0.8) * aligned
        return loss, figures

    return loss_at
