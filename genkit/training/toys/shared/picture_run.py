"""What the makings of toy-image and toy-dit have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from genkit.training.data.world.pictures import PicturePool, PictureSize
from genkit.training.engine.stages import Options
from genkit.training.toys.shared.picture_task import picture_probe
from genkit.training.toys.shared.picture_vae import PictureVae, build_picture_vae, picture_vae_loss, standardise_latents
from genkit.training.toys.shared.run import AutoencoderStage, Parts
from genkit.training.toys.shared.swap_gaps import PICTURE_KINDS, picture_errors, swap_gaps
from genkit.world.vocabulary import BACKGROUNDS


def _pool(options: Options, parts: Parts, rng: np.random.Generator) -> PicturePool:
    return PicturePool(
        parts["vae"], rng, fresh=0.3, inpaint=getattr(options, "inpaint", False), backgrounds=tuple(BACKGROUNDS)
    )


def _look(model: nn.Module, options: Options, parts: Parts, folder: Path, step: int) -> dict[str, float]:
    shown = PicturePool(parts["sharp"], np.random.default_rng(0), inpaint=getattr(options, "inpaint", False))
    right = picture_probe(model, shown, folder, step, PictureSize(128, 128))
    if not shown.inpaint:
        pairs = PicturePool(parts["vae"], np.random.default_rng(1), shares=(0.0, 1.0, 0.0))
        gaps = swap_gaps(pairs, PictureSize(96, 96), picture_errors(model), PICTURE_KINDS, count=32)
        right |= {f"swap {name}": value for name, value in gaps.items()}
    return right


#: The arguments of :class:`genkit.training.toys.shared.run.Toy` that both share.
PICTURE: dict[str, Any] = {
    "main": "denoiser",
    "shares": {"vae": 0.10, "decoder": 0.06, "denoiser": 0.76, "answers": 0.08},
    "classes": {"vae": "AutoencoderKL"},
    "autoencoders": (
        AutoencoderStage(
            "vae",
            "autoencoder",
            wrap=lambda _: PictureVae(build_picture_vae()),
            loss=picture_vae_loss,
            finish=standardise_latents,
        ),
        AutoencoderStage(
            "decoder",
            "decoder",
            wrap=lambda vae: PictureVae(vae, frozen=True),
            loss=lambda seed: picture_vae_loss(seed + 1, crop=64, noise=0.08, vary=True),
            after="vae",
            lr=1.2e-3,
        ),
    ),
    "pool": _pool,
    "look": _look,
}
