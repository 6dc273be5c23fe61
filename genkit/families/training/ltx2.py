"""LTX-2: video and sound in one call, both at one noise level; clips without sound keep the two apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError
from genkit.families.lookup import unwrap
from genkit.families.sound_features import SoundFeatures, features_of
from genkit.families.training.base import AUDIO, VIDEO, Call, Joint, Media, Tensors, Training
from genkit.families.training.ltx import grid_of, patch
from genkit.families.training.parts import (
    drawn,
    dtype_of,
    encode_first,
    encode_video,
    facts,
    later_frames,
    rows,
    sampled_shift,
    tokens_of,
    with_first,
)

if TYPE_CHECKING:
    import torch


def sound_tokens(pipeline: Any, seconds: float) -> int:
    """Tokens of a sound, as the pipeline counts them."""
    ratio = float(pipeline.audio_vae_temporal_compression_ratio)
    return round(seconds * (pipeline.audio_sampling_rate / pipeline.audio_hop_length / ratio))


def _text(pipeline: Any, captions: Sequence[str], slots: int) -> list[Tensors]:
    """What the connectors make of the captions for both streams: nothing of it changes in training."""
    import torch

    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(
            list(captions), do_classifier_free_guidance=False, max_sequence_length=slots
        )
        side = getattr(pipeline.tokenizer, "padding_side", "left")
        video, audio, mask = pipeline.connectors(states, mask, padding_side=side)
    return rows({"video": video, "audio": audio, "mask": mask})


def _encode_sound(pipeline: Any, media: Media, features: SoundFeatures, generator: torch.Generator | None) -> Tensors:
    """Normalised latents (C, L, bins) of the sound of a clip, as long as the pipeline makes it beside the clip."""
    import torch

    from genkit.media import resample

    vae = pipeline.audio_vae
    parameter = next(vae.parameters())
    wave = torch.from_numpy(resample(media.audio.T.numpy(), media.sample_rate, pipeline.audio_sampling_rate).T.copy())
    channels = vae.config.in_channels
    wave = wave.mean(0, keepdim=True) if channels == 1 else wave.expand(channels, -1)
    length = sound_tokens(pipeline, media.pixels.shape[1] / media.fps)
    frames = (length - 1) * pipeline.audio_vae_temporal_compression_ratio + 1
    with torch.no_grad():
        spectrum = features(wave[None].to(parameter.device), frames)
        posterior = vae.encode(spectrum.to(parameter.dtype)).latent_dist
    mode, spread = posterior.mode().float(), posterior.std.float()
    if mode.shape[2] != length:
        raise UnsupportedError(f"the audio autoencoder made {mode.shape[2]} tokens of a sound that needs {length}")
    # The statistics are those of tokens: one for every pair of channel and bin.
    mean, deviation = (
        pipeline._unpack_audio_latents(values.float()[None, None], 1, mode.shape[3])
        for values in (vae.latents_mean, vae.latents_std)
    )
    return drawn(AUDIO, (mode - mean) / deviation, spread / deviation, generator)


def _encoder(features: SoundFeatures, encode_clip: Any) -> Any:
    def encode(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
        found = encode_clip(pipeline, media, generator)
        return found if media.audio is None else found | _encode_sound(pipeline, media, features, generator)

    return encode


def _arguments(call: Call) -> dict[str, Any]:
    pipeline, model, dtype = call.pipeline, unwrap(call.model), dtype_of(call)
    video, fps = call.noisy[VIDEO], call.fps or float(facts(pipeline).fps)
    count, frames = len(video), video.shape[2]
    time, side, _ = patch(pipeline)
    grid = grid_of(call)
    if AUDIO in call.noisy:
        audio = pipeline._pack_audio_latents(call.noisy[AUDIO])
    else:
        pixels = (frames - 1) * pipeline.vae_temporal_compression_ratio + 1
        audio = video.new_zeros(count, sound_tokens(pipeline, pixels / fps), model.config.audio_in_channels)
    return {
        "hidden_states": pipeline._pack_latents(video, side, time).to(dtype),
        "audio_hidden_states": audio.to(dtype),
        "encoder_hidden_states": call.text["video"].to(dtype),
        "audio_encoder_hidden_states": call.text["audio"].to(dtype),
        **_levels(call, grid),
        "encoder_attention_mask": call.text["mask"],
        "audio_encoder_attention_mask": call.text["mask"],
        "num_frames": grid[0],
        "height": grid[1],
        "width": grid[2],
        "fps": fps,
        "audio_num_frames": audio.shape[1],
        "video_coords": model.rope.prepare_video_coords(count, *grid, video.device, fps=fps),
        "audio_coords": model.audio_rope.prepare_audio_coords(count, audio.shape[1], video.device),
        # A video's error must not teach the sound's layers what no sound told.
        "isolate_modalities": call.apart or AUDIO not in call.noisy,
        "use_cross_timestep": _cross_timestep(model) if call.cross_levels is None else call.cross_levels,
        "return_dict": False,
    }


def _levels(call: Call, grid: tuple[int, int, int]) -> dict[str, Any]:
    """What the model is told of the noise: one level for all, or 0 for the tokens that are given.

    A stream that is given whole is clean for the layers between the streams, too."""
    if not call.clean:
        return {"timestep": call.timestep, "sigma": call.timestep}
    found: dict[str, Any] = {}
    for stream, prefix in ((VIDEO, ""), (AUDIO, "audio_")):
        clean = call.clean.get(stream)
        if clean is None:  # a clip without sound
            found |= {prefix + "timestep": call.timestep, prefix + "sigma": call.timestep}
            continue
        times = call.timestep[:, None] * ~clean
        places = grid[1] * grid[2] if stream == VIDEO else 1
        found[prefix + "timestep"] = times.repeat_interleave(places, 1)
        found[prefix + "sigma"] = call.timestep * ~clean.all(1)
    return found


def _sound_of(pipeline: Any, frames: int, fps: float | None, tokens: int) -> int:
    """Sound tokens beside the first latent frames; the first of them is a single frame."""
    pixels = (frames - 1) * pipeline.vae_temporal_compression_ratio + 1
    return min(tokens, sound_tokens(pipeline, pixels / (fps or float(facts(pipeline).fps))))


def _cross_timestep(model: Any) -> bool:
    """Whether each stream's cross-modal layers are told the other's noise level: in all models after 2.0."""
    return bool(model.config.get("cross_attn_mod"))


def _answers(output: Any, call: Call) -> Tensors:
    time, side, _ = patch(call.pipeline)
    grid = grid_of(call)
    found = {VIDEO: call.pipeline._unpack_latents(output[0], *grid, side, time)}
    if AUDIO in call.noisy:
        _, _, length, bins = call.noisy[AUDIO].shape
        found[AUDIO] = call.pipeline._unpack_audio_latents(output[1], length, bins)
    return found


def _shift(pipeline: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sampled_shift(pipeline, tokens_of(shapes[VIDEO], patch(pipeline)))


def _text_to_video(pipeline: Any, sound: str | None) -> Training:
    encode = _encoder(features_of(pipeline, sound), _encode_clip)
    return Training(
        (VIDEO, AUDIO), encode, _text, _arguments, _answers, slots=1024, shift=_shift, variant=sound or "",
        joint=Joint(_sound_of),
    )  # fmt: skip


def _encode_clip(pipeline: Any, media: Media, generator: torch.Generator | None) -> Tensors:
    return encode_video(pipeline, media.pixels, generator)


def _first_arguments(call: Call) -> dict[str, Any]:
    """The first latent frame is clean, and its tokens are told so; the sound is as noisy as the rest."""
    time, side, _ = patch(call.pipeline)
    latents, timestep = with_first(call, math.prod(grid_of(call)))
    return {
        **_arguments(call),
        "hidden_states": call.pipeline._pack_latents(latents, side, time).to(dtype_of(call)),
        "timestep": timestep,
        "audio_timestep": call.timestep,
    }


def _image_to_video(pipeline: Any, sound: str | None) -> Training:
    return Training(
        streams=(VIDEO, AUDIO),
        encode=_encoder(features_of(pipeline, sound), encode_first),
        text=_text,
        arguments=_first_arguments,
        answers=_answers,
        slots=1024,
        shift=_shift,
        weights=later_frames,
        takes=("first_frame",),
        variant=sound or "",
    )


PIPELINES = {"LTX2Pipeline": _text_to_video, "LTX2ImageToVideoPipeline": _image_to_video}
# Of these the record has a ``joint`` part.
BY_TASKS = ("LTX2Pipeline",)
