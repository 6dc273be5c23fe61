"""Encoded clips with their sound, for training toy-av."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from genkit.families.sound_features import Tones
from genkit.training.data.pixels import as_tensor, use_onednn
from genkit.training.data.pool import Pool, Sample
from genkit.training.data.world.clips import ClipSize
from genkit.training.data.world.features import scene_features, sound_features
from genkit.training.toys.av.parts import BINS, FPS, HOP, TOKENS_PER_SECOND, audio_tokens, spectrum_frames
from genkit.world.render import render_clip
from genkit.world.scene import Scene, Tracks, actor_gap, draw_scene, lay_out
from genkit.world.sound import SAMPLE_RATE, Event, draw_sounding_scene, find_events, render_sound

TONES = Tones(SAMPLE_RATE, HOP, BINS)


@dataclass
class SoundSample(Sample):
    """One encoded clip with sound.

    Args:
        sound: normalised audio tokens, (L, features), float16.
        sound_features: for the audio stream's alignment read-out.
        counts: how often every object bounces within the clip; None for one that does not.
    """

    sound: torch.Tensor | None = None
    sound_features: torch.Tensor | None = None
    counts: tuple[int | None, ...] = ()


def draw_events(
    rng: np.random.Generator, size: ClipSize, two_share: float
) -> tuple[Scene, Tracks, list[Event], tuple[int | None, ...]]:
    """A scene, its tracks, what is heard of it and how often every object bounces, for a size."""
    two = float(size.room_for_two and rng.random() < two_share)
    while True:
        if size.frames > 1:
            scene = draw_sounding_scene(rng, two_share=two)
        else:
            scene = draw_scene(rng, moving=False, two_share=two)
        tracks = lay_out(scene, size.frames, size.height, size.width, rng, holds=True)
        # Two objects that would touch are drawn again, so that the caption tells what can be seen.
        if actor_gap(tracks) > 0:
            break
    counts = tuple(
        len(moments) if actor.motion == "bounce" else None
        for actor, moments in zip(scene.actors, tracks.moments, strict=True)
    )
    return scene, tracks, find_events(scene, tracks, FPS, size.width), counts


def draw_spectra(rng: np.random.Generator, count: int, frames: int, two_share: float = 0.4) -> torch.Tensor:
    """Spectrograms (count, 2, T, BINS) of the sound of random scenes of ``frames`` frames."""
    size = ClipSize(frames, 128, 128)
    waves = [render_sound(draw_events(rng, size, two_share)[2], frames / FPS) for _ in range(count)]
    return TONES(torch.from_numpy(np.stack(waves)), spectrum_frames(audio_tokens(frames)))


@dataclass
class SoundPool(Pool):
    """Encoded clips with sound.

    Args:
        audio_vae: frozen audio autoencoder with its latent statistics set.
        two_share: share of scenes with two objects.
    """

    audio_vae: nn.Module | None = None
    two_share: float = 0.5

    def __post_init__(self):
        use_onednn(self.vae)

    @torch.no_grad()
    def encode(self, size: ClipSize, count: int) -> list[SoundSample]:
        rows, clips, waves = [], [], []
        tokens = audio_tokens(size.frames)
        for _ in range(count):
            scene, tracks, events, counts = draw_events(self.rng, size, self.two_share)
            clips.append(render_clip(scene, tracks, size.height, size.width))
            waves.append(render_sound(events, size.frames / FPS))
            seen = scene_features(scene, tracks, size.height, size.width)
            heard = sound_features(events, tokens, TOKENS_PER_SECOND)
            rows.append((scene, torch.from_numpy(seen), torch.from_numpy(heard), counts))
        spectra = TONES(torch.from_numpy(np.stack(waves)), spectrum_frames(tokens))
        videos, sounds = encode_clips(self.vae, as_tensor(np.stack(clips))), encode_spectra(self.audio_vae, spectra)
        return [
            SoundSample(video, scene, seen, sound=sound, sound_features=heard, counts=counts)
            for video, sound, (scene, seen, heard, counts) in zip(videos, sounds, rows, strict=True)
        ]


def encode_clips(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents (B, C, T, H, W), float16, of pixels (B, 3, F, H, W) in -1..1."""
    from diffusers import LTX2Pipeline

    mode = vae.encode(pixels.to(next(vae.parameters()).device)).latent_dist.mode()
    return LTX2Pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std).half().cpu()


def encode_spectra(vae: Any, spectra: torch.Tensor) -> torch.Tensor:
    """Normalised audio tokens (B, L, features), float16, of spectrograms (B, 2, T, BINS)."""
    from diffusers import LTX2Pipeline

    mode = vae.encode(spectra.to(next(vae.parameters()).device)).latent_dist.mode()
    packed = LTX2Pipeline._pack_audio_latents(mode)
    return LTX2Pipeline._normalize_audio_latents(packed, vae.latents_mean, vae.latents_std).half().cpu()
