"""Super-resolution of what was inpainted: an upscaler draws it finely, and the known part is the large picture's.

The stock pipeline runs, with a scheduler that puts the known latents in the place of the ones that the model foresees,
in every step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from genkit.errors import UnsupportedError, UsageError
from genkit.families.prompts import UPSCALER
from genkit.media.canvas import Mask

#: Of the published code: denoising steps, guidance, how noisy the small picture is made, and how far the mask grows.
STEPS, GUIDANCE, NOISE_LEVEL, GROWTH = 20, 7.5, 20, 19


def factor_of(pipe: Any) -> int:
    """How many times larger an upscaler makes a picture.

    Raises:
        UnsupportedError: another pipeline.
    """
    if type(pipe).__name__ != UPSCALER:
        raise UnsupportedError(
            f"the upscaler of inpainting is a {UPSCALER} (Stable Diffusion x4 upscaler), not a {type(pipe).__name__}"
        )
    return 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@torch.no_grad()
def upscale(
    pipe: Any,
    low: np.ndarray,
    picture: np.ndarray,
    inside: np.ndarray,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_inference_steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    noise_level: int = NOISE_LEVEL,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Draw a small picture finely where a mask is, and keep the large one's latents elsewhere.

    Args:
        pipe: a StableDiffusionUpscalePipeline; its scheduler is sampled as DDIM.
        low: uint8 (h, w, 3), what was made.
        picture: uint8 (H, W, 3), the original, ``factor_of(pipe)`` times larger.
        inside: bool (H, W), what was made anew.
        prompt, negative_prompt: as those of what was made.
        num_inference_steps, guidance_scale, noise_level: of the stock pipeline.
        generator: of all noise.

    Returns:
        uint8 (H, W, 3); known pixels have gone through the autoencoder and are to be pasted.
    """
    from diffusers import DDIMScheduler
    from PIL import Image

    factor = factor_of(pipe)
    size = (low.shape[0] * factor, low.shape[1] * factor)
    if picture.shape[:2] != size or inside.shape != size:
        raise UsageError(f"the large picture and its mask must be {size[1]}x{size[0]}, {factor} times the small one")
    unknown = soft_mask(inside, low.shape[:2]).to(pipe._execution_device)
    own = pipe.scheduler
    pipe.scheduler = _keeping(DDIMScheduler, _latents(pipe, picture), unknown).from_config(own.config)
    try:
        frames = pipe(
            prompt, Image.fromarray(low), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            noise_level=noise_level, negative_prompt=negative_prompt, generator=generator, output_type="np",
        ).images  # fmt: skip
    finally:
        pipe.scheduler = own
    return np.clip(np.rint(frames[0] * 255), 0, 255).astype(np.uint8)


def soft_mask(inside: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A mask (H, W) for latents (h, w): 1 inside, with a soft edge around it; (1, 1, h, w) in 0..1."""
    grown = Mask(inside).grown(GROWTH).inside
    hard = functional.adaptive_max_pool2d(torch.from_numpy(inside)[None, None].float(), size)
    mask = functional.adaptive_avg_pool2d(torch.from_numpy(grown)[None, None].float(), size)
    side = min(GROWTH, 2 * (min(size) // 8) + 1) // 2
    padded = functional.pad(mask, (side,) * 4, mode="replicate")
    return torch.maximum(functional.avg_pool2d(padded, 2 * side + 1, stride=1), hard)


def _latents(pipe: Any, picture: np.ndarray) -> torch.Tensor:
    vae = pipe.vae
    coarse = vae.dtype == torch.float16 and vae.config.force_upcast
    if coarse:
        vae.to(torch.float32)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(pipe._execution_device, vae.dtype) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    if coarse:
        vae.to(torch.float16)
    return latents.float()


def _keeping(base: Any, known: torch.Tensor, unknown: torch.Tensor) -> Any:
    """A DDIM scheduler whose foreseen latents are the known ones where nothing is unknown."""

    class Keeping(base):
        def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["return_dict"] = True
            found = super().step(model_output, timestep, sample, *args, **kwargs)
            before = int(timestep) - self.config.num_train_timesteps // self.num_inference_steps
            kept = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
            change = (1 - unknown) * (known - found.pred_original_sample.float())
            return ((found.prev_sample + kept.sqrt().to(change) * change).to(found.prev_sample.dtype),)

    Keeping.__name__ = base.__name__  # the configuration names the class it was made by
    return Keeping
