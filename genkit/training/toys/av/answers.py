"""What the decoder of toy-av's video is trained on once the transformer is finished."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genkit.training.data.world.clips import ClipSize
from genkit.training.toys.av.model import OBJECTIVE, ToyAv
from genkit.training.toys.av.parts import FPS, audio_tokens, spectrum_frames
from genkit.training.toys.av.pool import TONES, draw_events, encode_clips, encode_spectra
from genkit.training.toys.av.vae import decode
from genkit.training.toys.shared.answers import Answer, Answers, Drawn
from genkit.training.toys.video.answers import is_hard
from genkit.training.toys.video.model import sizes
from genkit.world.caption import caption
from genkit.world.render import render_clip
from genkit.world.sound import render_sound

_COUNT = 3
_TWO, _EASY = 0.35, 0.6
_SIZES = sizes((17, 96, 96, 0.4), (25, 96, 96, 0.2), (25, 128, 128, 0.25), (9, 96, 96, 0.15))


def sounding_answers(audio_vae: Any, shift: float, guidance: float, rescale: float) -> Answers:
    """See :class:`genkit.training.toys.shared.answers.Answers`.

    Args:
        audio_vae: frozen, so that the transformer hears what belongs to a clip.
        shift, guidance, rescale: of the sampler.
    """

    @torch.no_grad()
    def draw(rng: np.random.Generator) -> Drawn:
        size: ClipSize = _SIZES[int(rng.choice(len(_SIZES), p=[share for _, share in _SIZES]))][0]
        texts: list[str] = []
        clips, spots, waves = [], [], []
        while len(texts) < _COUNT:
            scene, tracks, events, counts = draw_events(rng, size, _TWO)
            if not is_hard(scene) and rng.random() > _EASY:
                continue
            actor, frame = int(rng.integers(len(scene.actors))), int(rng.integers(size.frames))
            texts.append(caption(scene, rng, counts=counts if rng.random() < 0.5 else ()))
            clips.append(render_clip(scene, tracks, size.height, size.width))
            waves.append(render_sound(events, size.frames / FPS))
            spots.append(np.array([tracks.y[actor, frame], tracks.x[actor, frame]]) + rng.uniform(-12, 12, 2))
        spectra = TONES(torch.from_numpy(np.stack(waves)), spectrum_frames(audio_tokens(size.frames)))
        sound = encode_spectra(audio_vae, spectra).float()
        noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        return Drawn(texts, np.stack(clips), np.stack(spots), (sound, noise))

    return Answers(
        draw=draw,
        ask=ask,
        encode=encode_clips,
        raw=denormalise,
        decode=decode,
        objective=lambda model: OBJECTIVE,
        cell=16,
        side=6,
        shift=shift,
        guidance=guidance,
        rescale=rescale,
    )


def ask(model: ToyAv, drawn: Drawn, guided: bool) -> Answer:
    """What the transformer answers for the video; beside it runs the true sound, noised to the same level as in
    training, with the same noise in every step."""
    device = next(model.parameters()).device
    ids, mask = model.read(drawn.asked(guided), device)
    assert drawn.sound is not None
    sound, noise = (part.to(device).repeat(2 if guided else 1, 1, 1) for part in drawn.sound)

    def answer(noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        heard, _ = OBJECTIVE.noised(sound, noise, level)
        return model(noisy, heard, level, level, ids, mask)[0]

    return answer


def denormalise(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the decoder takes them."""
    from diffusers import LTX2Pipeline

    return LTX2Pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std)
