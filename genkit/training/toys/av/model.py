"""Training toy-av: a text encoder, LTX-2's connectors and its transformer on latents of clips and of their sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.families.training.objectives import Flow, denoising_loss, draw_sigma
from genkit.training.data.world.features import FEATURES, SOUND_FEATURES
from genkit.training.engine.curriculum import Stage, batch_for, draw_size
from genkit.training.engine.loop import process_rank
from genkit.training.engine.repa import REPAHead
from genkit.training.toys.av.parts import (
    CONNECTORS,
    FPS,
    build_av_tokenizer,
    build_gemma,
    build_transformer,
)
from genkit.training.toys.av.pool import SoundPool, SoundSample
from genkit.training.toys.video.model import sizes
from genkit.world.caption import caption

ALIGNED_BLOCK = 2
OBJECTIVE = Flow()
ADAM_NAMES = (
    "proj_in",
    "proj_out",
    "embed_tokens",
    "time_embed",
    "av_cross_attn",
    "scale_shift_table",
    "alignment",
)
# Share of the budget, clip sizes; two bounces need 17 frames. See genkit.training.toys.video.model.
STAGES = (
    Stage(0.0, sizes((1, 64, 64, 0.15), (5, 64, 64, 0.1), (9, 96, 96, 0.4), (17, 64, 64, 0.35))),
    Stage(0.3, sizes((1, 64, 64, 0.05), (9, 96, 96, 0.3), (17, 96, 96, 0.5), (17, 128, 128, 0.15))),
    Stage(0.68, sizes((9, 96, 96, 0.1), (17, 96, 96, 0.3), (17, 128, 128, 0.3), (25, 128, 128, 0.3))),
    Stage(0.88, sizes((17, 96, 96, 0.1), (17, 128, 128, 0.2), (25, 128, 128, 0.65), (17, 192, 192, 0.05))),
)


@dataclass(frozen=True)
class GivenShares:
    """How often a part of a sample is given, clean and at noise level 0.

    Args:
        sound: samples whose sound is given, for audio to video.
        video: samples whose video is given, for video to audio.
        first: steps in which the first latent frame is given, for image to audio and video.
    """

    sound: float = 0.15
    video: float = 0.15
    first: float = 0.1


def av_velocity(
    parts: Any,
    video: torch.Tensor,
    sound: torch.Tensor,
    sigma: torch.Tensor,
    sound_sigma: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    first: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted velocities of video (B, C, T, H, W) and sound (B, L, features).

    Args:
        parts: has ``text_encoder``, ``connectors`` and ``transformer``: a model in training, or a pipeline.
        video: noisy latents, clean where ``sigma`` is 0.
        sound: noisy audio tokens, clean where ``sound_sigma`` is 0.
        sigma, sound_sigma: (B,) in 0..1.
        ids, mask: (B, slots) token numbers and their validity.
        first: the first latent frame is clean whatever ``sigma`` says.
    """
    from diffusers import LTX2Pipeline

    hidden = parts.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    states = torch.stack(hidden, -1).flatten(2)
    seen_text, heard_text, text_mask = parts.connectors(states, mask, padding_side="left")
    frames, height, width = video.shape[2:]
    level, sound_level = OBJECTIVE.timesteps(sigma), OBJECTIVE.timesteps(sound_sigma)
    timestep = level
    if first:
        clean = torch.arange(frames * height * width, device=video.device) < height * width
        timestep = torch.where(clean, 0.0, level[:, None])
    velocity, sound_velocity = parts.transformer(
        hidden_states=LTX2Pipeline._pack_latents(video),
        audio_hidden_states=sound,
        encoder_hidden_states=seen_text,
        audio_encoder_hidden_states=heard_text,
        timestep=timestep,
        audio_timestep=sound_level,
        sigma=level,
        audio_sigma=sound_level,
        encoder_attention_mask=text_mask,
        audio_encoder_attention_mask=text_mask,
        num_frames=frames,
        height=height,
        width=width,
        fps=FPS,
        audio_num_frames=sound.shape[1],
        use_cross_timestep=True,
        return_dict=False,
    )
    return LTX2Pipeline._unpack_latents(velocity, frames, height, width), sound_velocity


class ToyAv(nn.Module):
    """Text encoder, connectors, transformer and the read-outs of both streams, trained together.

    Args:
        transformer: settings that differ from :data:`genkit.training.toys.av.parts.TRANSFORMER`.
    """

    def __init__(self, transformer: dict | None = None):
        super().__init__()
        from diffusers.pipelines.ltx2 import LTX2TextConnectors

        self.tokenizer = build_av_tokenizer()
        self.tokenizer.padding_side = "left"
        self.text_encoder = build_gemma(len(self.tokenizer))
        self.connectors = LTX2TextConnectors(**CONNECTORS)
        self.transformer = build_transformer(transformer)
        config = self.transformer.config
        block = self.transformer.transformer_blocks[min(ALIGNED_BLOCK, config.num_layers - 1)]
        width, audio_width = config.cross_attention_dim, config.audio_cross_attention_dim
        self.alignment = REPAHead(block, width, FEATURES, part=0)
        self.sound_alignment = REPAHead(block, audio_width, SOUND_FEATURES, part=1)

    def read(self, texts: list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`read_texts`."""
        return read_texts(self.tokenizer, texts, device)

    forward = av_velocity


def read_texts(tokenizer: Any, texts: list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and mask (B, slots); the tokenizer pads on the left, as the pipeline's does."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return batch.input_ids.to(device), batch.attention_mask.to(device)


def av_captions(samples: list[SoundSample], rng: np.random.Generator, empty: float = 0.1) -> list[str]:
    """Fresh captions: a tenth empty, half of the others count bounces, a sixth leave the background unsaid."""
    texts = []
    for sample in samples:
        picture = sample.latents.shape[1] == 1
        counts = sample.counts if rng.random() < 0.5 else ()
        said = caption(sample.scene, rng, picture=picture, counts=counts, background=rng.random() > 1 / 6)
        texts.append("" if rng.random() < empty else said)
    return texts


def clean_pair(samples: list[SoundSample], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, C, T, H, W) of the videos and tokens (B, L, features) of the sounds, float32."""
    video = torch.stack([sample.latents for sample in samples]).to(device).float()
    return video, torch.stack([sample.sound for sample in samples]).to(device).float()


def draw_given(count: int, shares: GivenShares, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples (count,) have their sound, and which their video, given."""
    kind = torch.from_numpy(rng.random(count))
    return kind < shares.sound, (kind >= shares.sound) & (kind < shares.sound + shares.video)


def noisy_pair(
    video: torch.Tensor,
    sound: torch.Tensor,
    shift: float,
    given: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Draw noise and levels for clean latents; video and sound share a level unless one of them is given.

    Args:
        video, sound: clean latents.
        shift: of the noise levels.
        given: bool (B,) each, samples with clean sound and with clean video.
        generator: of levels and noise.

    Returns:
        ``video`` and ``sound`` with noise, ``sigma`` and ``sound_sigma`` (B,), 0 for what is given, and the targets
        ``velocity`` and ``sound_velocity``.
    """
    drawn = draw_sigma(len(video), shift, generator)
    sound_sigma, sigma = (torch.where(clean, 0.0, drawn).to(video.device) for clean in given)
    noise, sound_noise = (torch.randn(part.shape, generator=generator).to(video.device) for part in (video, sound))
    noisy, velocity = OBJECTIVE.noised(video, noise, sigma)
    noisy_sound, sound_velocity = OBJECTIVE.noised(sound, sound_noise, sound_sigma)
    return {
        "video": noisy,
        "sound": noisy_sound,
        "sigma": sigma,
        "sound_sigma": sound_sigma,
        "velocity": velocity,
        "sound_velocity": sound_velocity,
    }


def pair_loss(
    velocity: torch.Tensor,
    sound_velocity: torch.Tensor,
    drawn: dict[str, torch.Tensor],
    target: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of both halves, and the errors (B,) of video and sound. What is given counts nothing, low levels half.

    Args:
        velocity, sound_velocity: the model's answers.
        drawn: from :func:`noisy_pair`.
        target: of the video where not all of ``drawn``'s is asked for.
    """
    wanted = drawn["velocity"] if target is None else target
    loss, error = denoising_loss(velocity, wanted, drawn["sigma"], low_weight=0.5)
    sound_loss, sound_error = denoising_loss(
        sound_velocity, drawn["sound_velocity"], drawn["sound_sigma"], low_weight=0.5
    )
    return loss + sound_loss, error, sound_error


def av_loss(
    pool: SoundPool,
    model: ToyAv,
    seed: int,
    tokens: int = 3600,
    shift: float = 4.0,
    stages: tuple[Stage, ...] = STAGES,
    align: float = 0.5,
    shares: GivenShares | None = None,
):
    """The loss function handed to the training loop.

    Args:
        pool: where samples come from.
        model: the unwrapped module, for its tokenizer and read-outs.
        seed: of captions, sizes and noise.
        tokens: video tokens per step; the batch is as large as they allow.
        shift: of the noise levels.
        stages: clip sizes over the budget.
        align: weight of the alignment losses at the start; falls linearly to zero at 80% of the budget.
        shares: of samples with a given part.
    """
    shares = shares or GivenShares()

    def loss_at(wrapped: nn.Module, step: int, progress: float):
        # All processes of a distributed run draw the same size, and everything else for themselves.
        shared, rng = np.random.default_rng((seed, step)), np.random.default_rng((seed, step, process_rank()))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        size = draw_size(stages, progress, shared)
        samples = pool.draw(size, batch_for(size, tokens))
        device = next(wrapped.parameters()).device
        video, sound = clean_pair(samples, device)
        first = video.shape[2] > 1 and shared.random() < shares.first
        drawn = noisy_pair(video, sound, shift, draw_given(len(samples), shares, rng), generator)
        if first:
            drawn["video"][:, :, 0] = video[:, :, 0]
        velocity, sound_velocity = wrapped(
            drawn["video"], drawn["sound"], drawn["sigma"], drawn["sound_sigma"],
            *model.read(av_captions(samples, rng), device), first=first,
        )  # fmt: skip
        made = slice(1 if first else 0, None)
        loss, error, sound_error = pair_loss(velocity[:, :, made], sound_velocity, drawn, drawn["velocity"][:, :, made])
        figures = {}
        for name, values, sigma in (
            ("velocity", error, drawn["sigma"]),
            ("sound", sound_error, drawn["sound_sigma"]),
        ):
            if (sigma > 0).any():
                figures[name] = values[sigma > 0].mean().item()
        seen = model.alignment.loss(torch.stack([sample.features for sample in samples]).to(device))
        heard = model.sound_alignment.loss(torch.stack([sample.sound_features for sample in samples]).to(device))
        figures |= {"align": seen.item(), "sound_align": heard.item()}
        return loss + align * max(0.0, 1 - progress / 0.8) * (seen + heard), figures

    return loss_at
