"""toy-dit in training: a Flux transformer, a T5 encoder for its words and a CLIP encoder for the summary."""

from __future__ import annotations

import torch
from torch import nn

from genkit.families.training.objectives import Flow, shifted
from genkit.training.data.world.pictures import FEATURES
from genkit.training.engine.repa import REPAHead
from genkit.training.toys.shared.picture_text import (
    TEXT_WIDTH,
    build_clip_encoder,
    build_piece_tokenizer,
    build_t5_encoder,
)
from genkit.training.toys.shared.text import build_word_tokenizer
from genkit.world.picture_caption import picture_words

LATENT_CHANNELS = 4
FLUX = {
    # Two by two latent pixels are packed into one token.
    "in_channels": 4 * LATENT_CHANNELS,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 24, 24),
}
# Flux pads the text with unmasked tokens, so the model must know the lengths it will be run with.
TEXT_SLOTS = (28, 40)
SHIFT = 2.0
ADAM_NAMES = (
    "x_embedder",
    "proj_out",
    "time_text_embed",
    "shared",
    "relative_attention",
    "token_embedding",
    "position_embedding",
    "alignment",
)


class ToyDit(nn.Module):
    """Text encoders, transformer and alignment read-out, trained together."""

    def __init__(self):
        super().__init__()
        from diffusers import FluxTransformer2DModel

        self.tokenizer = build_piece_tokenizer()
        self.text_encoder = build_clip_encoder(self.tokenizer)
        self.tokenizer_2 = build_word_tokenizer(vocabulary=picture_words())
        self.text_encoder_2 = build_t5_encoder(len(self.tokenizer_2))
        self.transformer = FluxTransformer2DModel(**FLUX)
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        width = FLUX["num_attention_heads"] * FLUX["attention_head_dim"]
        self.alignment = REPAHead(self.transformer.transformer_blocks[-1], width, FEATURES)
        self.objective = Flow(1.0)
        self.turn = 0

    def read(self, texts: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Token numbers (B, 77) for CLIP and (B, slots) for T5, padded as the pipeline does; ``slots`` goes in turn
        through the lengths that hold the texts."""
        brief = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        longest = max(len(ids) for ids in self.tokenizer_2(texts).input_ids)
        usable = [slots for slots in TEXT_SLOTS if slots >= longest] or [TEXT_SLOTS[-1]]
        self.turn += 1
        whole = self.tokenizer_2(
            texts,
            padding="max_length",
            max_length=usable[self.turn % len(usable)],
            truncation=True,
            return_tensors="pt",
        )
        return brief.to(device), whole.input_ids.to(device)

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, brief: torch.Tensor, whole: torch.Tensor
    ) -> torch.Tensor:
        """Predicted velocity.

        Args:
            noisy: (B, 4, h, w) latents, h and w even.
            level: (B,) in 0..1.
            brief, whole: token numbers from :meth:`read`.
        """
        from diffusers import FluxPipeline

        count, channels, height, width = noisy.shape
        packed = FluxPipeline._pack_latents(noisy, count, channels, height, width)
        places = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype)
        velocity = self.transformer(
            hidden_states=packed,
            timestep=self.objective.timesteps(level),
            pooled_projections=self.text_encoder(brief).pooler_output,
            encoder_hidden_states=self.text_encoder_2(whole).last_hidden_state,
            txt_ids=places.new_zeros(whole.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(velocity, height, width, 1)

    @torch.no_grad()
    def sample(self, texts: list[str], noise: torch.Tensor, steps: int, guidance: float, extra: None = None):
        """Latents of texts from noise (B, 4, h, w), by Euler steps over shifted levels with guidance."""
        tokens = self.read([*texts, *[""] * len(texts)], noise.device)
        levels = shifted(torch.linspace(1, 0, steps + 1), SHIFT).tolist()
        latents = noise
        for level, following in zip(levels[:-1], levels[1:], strict=True):
            full = torch.full((2 * len(texts),), level, device=noise.device)
            asked, free = self(latents.repeat(2, 1, 1, 1), full, *tokens).chunk(2)
            latents = latents + (following - level) * (free + guidance * (asked - free))
        return latents
