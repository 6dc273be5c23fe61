"""Video for a given sound, and sound for a given video, with LTX-2's classes.

Stock pipelines denoise both streams together. Here one of them is given: its tokens stay clean, their noise level is 0
in every step, and only the other stream is denoised. The transformer's two attentions between the streams do the rest.
Both levels are told to the model separately, so that its cross-modal modulation knows that the given stream is clean.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.families.sound_features import SoundFeatures
from genkit.media import resample
from genkit.pipelines.tasks.audio_video.given import USUAL_FRAMES, Given

# Arguments of LTX2Pipeline's call that mean the same here; the defaults are the pipeline's own.
ARGUMENTS = (
    "prompt", "negative_prompt", "height", "width", "num_frames", "frame_rate", "num_inference_steps",
    "guidance_scale", "stg_scale", "modality_scale", "guidance_rescale", "audio_guidance_scale", "audio_stg_scale",
    "audio_modality_scale", "audio_guidance_rescale", "spatio_temporal_guidance_blocks", "use_cross_timestep",
    "max_sequence_length", "generator", "output_type", "callback_on_step_end", "attention_kwargs",
)  # fmt: skip


@dataclass
class _Stream:
    """One of the two streams: packed tokens (B, N, C), and whether they are given."""

    tokens: torch.Tensor
    given: bool


@dataclass(frozen=True)
class _Guidance:
    """Guidance of the stream that is made."""

    text: float
    perturbed: float
    isolated: float
    rescale: float
    blocks: list[int] | None


def complete(pipeline: Any, given: Given, features: SoundFeatures, **arguments: Any) -> Any:
    """Make the half of a clip with sound that is not given.

    Args:
        pipeline: an ``LTX2Pipeline`` or one with the same parts.
        given: the sound or the video, already fitted to the run (:meth:`Given.fitted`).
        features: how a sound becomes a spectrogram, see :func:`genkit.families.sound_features.features_of`.
        arguments: of ``LTX2Pipeline``'s call, those in :data:`ARGUMENTS`, for one prompt. ``guidance_scale`` and the
            like act on the stream that is made, those with ``audio_`` on sound as in the pipeline.

    Returns:
        ``LTX2PipelineOutput`` whose ``frames`` (B, T, H, W, 3) or ``audio`` (B, channels, samples) is None for what was
        given.

    Raises:
        UsageError: an argument that is not known here, or that the given half does not fit.
        UnsupportedError: a video decoder that wants a noise level.
    """
    from diffusers.pipelines.ltx2.pipeline_output import LTX2PipelineOutput

    options = _options(pipeline, arguments)
    _check(pipeline, given, options)
    guidance = _guidance_of(options, sound=given.frames is not None)
    with torch.no_grad():
        made = _denoise(pipeline, given, features, options, guidance)
    pipeline.maybe_free_model_hooks()
    if given.sound is not None:
        return LTX2PipelineOutput(frames=made, audio=None)
    return LTX2PipelineOutput(frames=None, audio=made)


def _options(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the pipeline's own defaults for those left out."""
    unknown = sorted(set(arguments) - set(ARGUMENTS))
    if unknown:
        raise UsageError(explain("argument of an audio-video run with a given half", unknown[0], ARGUMENTS))
    own = inspect.signature(type(pipeline).__call__).parameters
    options = {name: own[name].default for name in ARGUMENTS if name in own} | arguments
    if options.get("num_frames") is None:
        options["num_frames"] = USUAL_FRAMES
    if not isinstance(options.get("prompt"), str):
        raise UsageError(explain("prompt", options.get("prompt"), "one text"))
    return options


def _check(pipeline: Any, given: Given, options: dict[str, Any]) -> None:
    """Refuse sizes that the model has no latents for, a given video of another size, and unknown decoders."""
    rows, frames = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
    for name, step, rest in (("height", rows, 0), ("width", rows, 0), ("num_frames", frames, 1)):
        if options[name] < 1 or (options[name] - rest) % step:
            raise UsageError(explain(name, options[name], f"{'1 plus a multiple' if rest else 'multiples'} of {step}"))
    size = tuple(options[name] for name in ("num_frames", "height", "width"))
    if given.frames is not None and given.frames.shape[:3] != size:
        raise UsageError(explain("given video", given.frames.shape[:3], f"{size}, as the call says", "fit it first"))
    if getattr(pipeline.vae.config, "timestep_conditioning", False):
        raise UnsupportedError("this model's video decoder wants a noise level, which is not known here")


def _guidance_of(options: dict[str, Any], sound: bool) -> _Guidance:
    """Guidance of the stream that is made; a sound's scale that is None or 0 is the video's, as in the pipeline."""
    found = {}
    for name in ("guidance_scale", "stg_scale", "modality_scale", "guidance_rescale"):
        found[name] = (options[f"audio_{name}"] if sound else None) or options[name]
    blocks = options["spatio_temporal_guidance_blocks"]
    if found["stg_scale"] > 0 and not blocks:
        raise UsageError("stg_scale above 0 needs spatio_temporal_guidance_blocks, a list of block numbers")
    return _Guidance(
        found["guidance_scale"], found["stg_scale"], found["modality_scale"], found["guidance_rescale"], blocks
    )


@dataclass(frozen=True)
class _Run:
    """What stays the same over the steps of a run.

    Args:
        pipeline: whose transformer is called.
        video, sound: the streams; one of them is given.
        text: of the video, of the sound, and its mask; with guidance two rows, the negative prompt's first.
        grid: latent frames, rows and columns.
        coords: positions in seconds and pixels of the tokens of both streams.
        options: the call's arguments.
    """

    pipeline: Any
    video: _Stream
    sound: _Stream
    text: tuple[torch.Tensor, ...]
    grid: tuple[int, int, int]
    coords: tuple[torch.Tensor, torch.Tensor]
    options: dict[str, Any]

    @property
    def made(self) -> _Stream:
        """The stream that is denoised."""
        return self.sound if self.video.given else self.video

    def velocity(self, context: str, timestep: torch.Tensor, asked: bool = False, **more: Any) -> torch.Tensor:
        """The model's velocity of the made stream.

        Args:
            context: name of the pass, for caches and attention methods.
            timestep: of the made stream; the given one's is 0.
            asked: the prompt's row alone.
            more: further arguments of the transformer.
        """
        text = tuple(part[-1:] for part in self.text) if asked else self.text
        rows, dtype = len(text[0]), self.pipeline.transformer.dtype
        level = timestep.expand(rows)
        levels = [torch.zeros_like(level) if stream.given else level for stream in (self.video, self.sound)]
        with self.pipeline.transformer.cache_context(context):
            pair = self.pipeline.transformer(
                hidden_states=self.video.tokens.expand(rows, -1, -1).to(dtype),
                audio_hidden_states=self.sound.tokens.expand(rows, -1, -1).to(dtype),
                encoder_hidden_states=text[0],
                audio_encoder_hidden_states=text[1],
                timestep=levels[0],
                audio_timestep=levels[1],
                sigma=levels[0],
                audio_sigma=levels[1],
                encoder_attention_mask=text[2],
                audio_encoder_attention_mask=text[2],
                num_frames=self.grid[0],
                height=self.grid[1],
                width=self.grid[2],
                fps=self.options["frame_rate"],
                audio_num_frames=self.sound.tokens.shape[1],
                video_coords=self.coords[0].expand(rows, -1, -1, -1),
                audio_coords=self.coords[1].expand(rows, -1, -1, -1),
                use_cross_timestep=self.options["use_cross_timestep"],
                attention_kwargs=self.options["attention_kwargs"],
                return_dict=False,
                **more,
            )
        return pair[1 if self.video.given else 0].float()

    def guided(self, guidance: _Guidance, timestep: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The clean tokens that the model expects, with every kind of guidance, as LTX-2's pipeline combines them."""
        noisy = self.made.tokens
        clean = noisy - sigma * self.velocity("cond_uncond", timestep)
        free, wanted = clean[:1], clean[-1:]
        found = wanted + (guidance.text - 1) * (wanted - free)
        if guidance.perturbed > 0:
            blurred = self.velocity("uncond_stg", timestep, True, spatio_temporal_guidance_blocks=guidance.blocks)
            found = found + guidance.perturbed * (wanted - (noisy - sigma * blurred))
        if guidance.isolated > 1:
            alone = self.velocity("uncond_modality", timestep, True, isolate_modalities=True)
            found = found + (guidance.isolated - 1) * (wanted - (noisy - sigma * alone))
        if guidance.rescale > 0:
            found = (1 - guidance.rescale + guidance.rescale * wanted.std() / found.std()) * found
        return found


def _denoise(pipeline: Any, given: Given, features: SoundFeatures, options: dict[str, Any], guidance: _Guidance) -> Any:
    """Frames or samples of the half that is made."""
    device, count = pipeline._execution_device, int(options["num_frames"])
    grid = (
        (count - 1) // pipeline.vae_temporal_compression_ratio + 1,
        options["height"] // pipeline.vae_spatial_compression_ratio,
        options["width"] // pipeline.vae_spatial_compression_ratio,
    )
    length = _sound_tokens(pipeline, count / options["frame_rate"])
    text = _read_prompt(pipeline, options, device, guidance.text > 1)
    streams = _streams(pipeline, given, features, grid, length, options["generator"], device)
    coords = (
        pipeline.transformer.rope.prepare_video_coords(1, *grid, device, fps=options["frame_rate"]),
        pipeline.transformer.audio_rope.prepare_audio_coords(1, length, device),
    )
    run = _Run(pipeline, *streams, text, grid, coords, options)
    timesteps = _timesteps(pipeline, run.video.tokens.shape[1], options["num_inference_steps"], device)
    made, told = run.made, options["callback_on_step_end"]
    with pipeline.progress_bar(total=len(timesteps)) as bar:
        for index, timestep in enumerate(timesteps):
            pipeline._current_timestep = timestep
            sigma = pipeline.scheduler.sigmas[index]
            velocity = (made.tokens - run.guided(guidance, timestep, sigma)) / sigma
            made.tokens = pipeline.scheduler.step(velocity, timestep, made.tokens, return_dict=False)[0]
            if told is not None:
                told(pipeline, index, timestep, {"latents": made.tokens})
            bar.update()
    if run.video.given:
        return _decode_sound(pipeline, made.tokens, length)
    return _decode_video(pipeline, made.tokens, grid, options["output_type"])


def _read_prompt(
    pipeline: Any, options: dict[str, Any], device: torch.device, guided: bool
) -> tuple[torch.Tensor, ...]:
    """Text of both streams and its mask; with guidance two rows, the negative prompt's first."""
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(
        prompt=options["prompt"],
        negative_prompt=options["negative_prompt"],
        do_classifier_free_guidance=guided,
        max_sequence_length=options["max_sequence_length"],
        device=device,
    )
    if guided:
        embeds, mask = torch.cat([negative, embeds]), torch.cat([negative_mask, mask])
    side = getattr(getattr(pipeline, "tokenizer", None), "padding_side", "left")
    return pipeline.connectors(embeds, mask, padding_side=side)


def _timesteps(pipeline: Any, tokens: int, steps: int, device: torch.device) -> torch.Tensor:
    """Timesteps as the pipeline sets them: the number of video tokens decides how far they are shifted."""
    from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift, retrieve_timesteps

    config = pipeline.scheduler.config
    shift = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 1024),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.95),
        config.get("max_shift", 2.05),
    )
    sigmas = np.linspace(1.0, 1 / steps, steps)
    timesteps, _ = retrieve_timesteps(pipeline.scheduler, steps, device, None, sigmas=sigmas, mu=shift)
    pipeline.scheduler.set_begin_index(0)
    pipeline._num_timesteps = len(timesteps)
    return timesteps


def _streams(
    pipeline: Any,
    given: Given,
    features: SoundFeatures,
    grid: tuple[int, int, int],
    length: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> tuple[_Stream, _Stream]:
    """Video and sound: what is given encoded, the other one noise."""
    if given.frames is not None:
        video = _encode_video(pipeline, given.frames, device)
        sound = pipeline.prepare_audio_latents(
            1, pipeline.audio_vae.config.latent_channels, length, pipeline.audio_vae.config.mel_bins,
            dtype=torch.float32, device=device, generator=generator,
        )  # fmt: skip
    else:
        sound = _encode_sound(pipeline, given.sound, given.rate, features, length, device)
        ratio = (pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio)
        video = pipeline.prepare_latents(
            1, pipeline.transformer.config.in_channels, grid[1] * ratio[1], grid[2] * ratio[1],
            (grid[0] - 1) * ratio[0] + 1, dtype=torch.float32, device=device, generator=generator,
        )  # fmt: skip
    return _Stream(video, given.frames is not None), _Stream(sound, given.sound is not None)


def _encode_video(pipeline: Any, frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """Packed normalised tokens (1, N, C) of frames (T, H, W, 3)."""
    vae = pipeline.vae
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(device, vae.dtype) / 127.5 - 1
    mode = vae.encode(pixels).latent_dist.mode().float()
    latents = pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return pipeline._pack_latents(
        latents, pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
    )


def _encode_sound(
    pipeline: Any, sound: np.ndarray, rate: int, features: SoundFeatures, length: int, device: torch.device
) -> torch.Tensor:
    """Packed normalised tokens (1, length, features) of a sound."""
    vae = pipeline.audio_vae
    wave = torch.from_numpy(resample(sound, rate, pipeline.audio_sampling_rate).T.copy())
    channels = vae.config.in_channels
    wave = wave.mean(0, keepdim=True) if channels == 1 else wave.expand(channels, -1)
    frames = (length - 1) * pipeline.audio_vae_temporal_compression_ratio + 1
    spectrum = features(wave[None].to(device), frames).to(vae.dtype)
    tokens = pipeline._pack_audio_latents(vae.encode(spectrum).latent_dist.mode().float())
    if tokens.shape[1] != length:
        raise UnsupportedError(
            f"the audio autoencoder made {counted(tokens.shape[1], 'token')} of a sound that needs {length}"
        )
    return pipeline._normalize_audio_latents(tokens, vae.latents_mean, vae.latents_std)


def _decode_video(pipeline: Any, tokens: torch.Tensor, grid: tuple[int, int, int], output_type: str) -> Any:
    vae = pipeline.vae
    latents = pipeline._unpack_latents(
        tokens, *grid, pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
    )
    latents = pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    pixels = vae.decode(latents.to(vae.dtype), None, return_dict=False)[0]
    return pipeline.video_processor.postprocess_video(pixels, output_type=output_type)


def _decode_sound(pipeline: Any, tokens: torch.Tensor, length: int) -> torch.Tensor:
    vae = pipeline.audio_vae
    latents = pipeline._denormalize_audio_latents(tokens, vae.latents_mean, vae.latents_std)
    bins = vae.config.mel_bins // pipeline.audio_vae_mel_compression_ratio
    latents = pipeline._unpack_audio_latents(latents, length, num_mel_bins=bins)
    return pipeline.vocoder(vae.decode(latents.to(vae.dtype), return_dict=False)[0])


def _sound_tokens(pipeline: Any, seconds: float) -> int:
    """Tokens of a sound, as the pipeline counts them."""
    ratio = float(pipeline.audio_vae_temporal_compression_ratio)
    return round(seconds * (pipeline.audio_sampling_rate / pipeline.audio_hop_length / ratio))


def code_video(pipeline: Any, frames: np.ndarray) -> Any:
    """Frames uint8 (T, H, W, 3) after the video autoencoder's two ways: floats (1, T, H, W, 3) in 0..1."""
    times, side = pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
    grid = ((len(frames) - 1) // times + 1, frames.shape[1] // side, frames.shape[2] // side)
    return _decode_video(pipeline, _encode_video(pipeline, frames, pipeline._execution_device), grid, "np")


def code_sound(pipeline: Any, sound: np.ndarray, rate: int, features: SoundFeatures) -> torch.Tensor:
    """A sound (S, channels) after spectrogram, audio autoencoder and vocoder: (1, channels, samples)."""
    length = _sound_tokens(pipeline, len(sound) / rate)
    tokens = _encode_sound(pipeline, sound, rate, features, length, pipeline._execution_device)
    return _decode_sound(pipeline, tokens, length)
