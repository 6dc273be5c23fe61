"""toy-image in training: a CLIP text encoder and a UNet that predicts the velocity of the usual diffusion."""

from __future__ import annotations

import torch
from torch import nn

from genkit.families.training.objectives import Table
from genkit.training.data.world.pictures import FEATURES
from genkit.training.engine.repa import REPAHead
from genkit.training.toys.shared.picture_text import TEXT_WIDTH, build_clip_encoder, build_piece_tokenizer

UNET = {
    "sample_size": 32,
    "block_out_channels": (48, 96, 160),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": (1, 3, 5),
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
# No signal is left at the last step, so that a background's colour cannot leak into training's first step and be
# missed in sampling; this needs velocity prediction, which also gives usable pictures from every step (LCM sampling).
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
LATENT_CHANNELS, MASK_CHANNELS = 4, 5
ADAM_NAMES = ("conv_in", "conv_out", "time_embedding", "token_embedding", "position_embedding", "alignment")


class ToyImage(nn.Module):
    """Text encoder, UNet and alignment read-out, trained together.

    Args:
        inpaint: the nine-channel UNet, which also reads a mask and the latents of what the mask leaves.
    """

    def __init__(self, inpaint: bool = False):
        super().__init__()
        from diffusers import DDIMScheduler, UNet2DConditionModel

        self.tokenizer = build_piece_tokenizer()
        self.text_encoder = build_clip_encoder(self.tokenizer)
        channels = LATENT_CHANNELS + (MASK_CHANNELS if inpaint else 0)
        self.unet = UNet2DConditionModel(in_channels=channels, out_channels=LATENT_CHANNELS, **UNET)
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        block = self.unet.down_blocks[1].attentions[-1]
        self.alignment = REPAHead(block, UNET["block_out_channels"][1], FEATURES)
        self.scheduler = DDIMScheduler(**NOISE)
        self.objective = Table(self.scheduler.alphas_cumprod, NOISE["prediction_type"])

    def read(self, texts: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Token numbers (B, 77) as the pipeline makes them."""
        batch = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return (batch.input_ids.to(device),)

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, ids: torch.Tensor, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predicted velocity.

        Args:
            noisy: (B, 4, h, w) latents.
            level: (B,) in 0..1.
            ids: (B, 77) token numbers.
            extra: (B, 5, h, w), mask and masked latents, for the inpainting form.
        """
        states = self.text_encoder(ids).last_hidden_state
        full = noisy if extra is None else torch.cat([noisy, extra], 1)
        return self.unet(full, self.objective.timesteps(level), states, return_dict=False)[0]

    @torch.no_grad()
    def sample(
        self, texts: list[str], noise: torch.Tensor, steps: int, guidance: float, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of texts from noise (B, 4, h, w), by DDIM with guidance."""
        (ids,) = self.read([*texts, *[""] * len(texts)], noise.device)
        both = None if extra is None else extra.repeat(2, 1, 1, 1)
        self.scheduler.set_timesteps(steps)
        latents = noise
        for timestep in self.scheduler.timesteps:
            level = torch.full((len(ids),), (float(timestep) + 0.5) / 1000, device=noise.device)
            asked, free = self(latents.repeat(2, 1, 1, 1), level, ids, both).chunk(2)
            latents = self.scheduler.step(free + guidance * (asked - free), timestep, latents).prev_sample
        return latents
