"""A loaded pipeline as a sampler of an editing method sees it: latents, texts, answers and the path of noise.

Everything about a family comes from its record (:mod:`genkit.families.training`), which is checked against the stock
pipelines; no method knows a model by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.editing.shared.image_prompt import check_adapters, silenced
from genkit.editing.shared.levels import levels_of
from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain
from genkit.families.base import Family
from genkit.families.lookup import family_of
from genkit.families.training.base import AUDIO, VIDEO, Call, Media, Training
from genkit.families.training.lookup import called
from genkit.families.training.objectives import Flow, Objective, objective_of
from genkit.families.training.parts import facts


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a denoiser is told of prompts, one row a prompt.

    Args:
        tensors: by name, each (B, ...), as the family's record makes them.
    """

    tensors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def rows(self, numbers: Sequence[int]) -> Conditions:
        """The prompts of these numbers, in this order, repeated or not."""
        return Conditions({name: value[list(numbers)] for name, value in self.tensors.items()})

    @staticmethod
    def stacked(parts: Sequence[Conditions]) -> Conditions:
        """Several after each other."""
        return Conditions({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


class EditModel:
    """A pipeline's parts and how they are called.

    Latents are those the denoiser is trained to make, (B, C, h, w) of pictures and (B, C, T, h, w) of clips, float32;
    packing into tokens is the family's business. A noise level is a number in 0..1: of flow models the share of noise,
    of others ``(t + 1/2) / 1000`` for timestep ``t``; 0 is clean. With its ``signal`` and ``spread`` noisy latents are
    ``signal * clean + spread * noise``.

    Args:
        pipe: a stock Diffusers pipeline; nothing of it is changed.
        record: how its family's denoiser is called.
        objective: what the denoiser answers.
    """

    def __init__(self, pipe: Any, record: Training, objective: Objective):
        self.pipe, self.record, self.objective = pipe, record, objective
        self.codec = facts(pipe).codec

    @classmethod
    def of(cls, pipe: Any, inpaints: bool = False) -> EditModel:
        """The model of a pipeline for pictures or videos from text.

        Args:
            pipe: the pipeline.
            inpaints: whether the method gives mask and masked picture to a denoiser that reads them.

        Raises:
            UnsupportedError: a family that genkit cannot call, or one that needs more than a picture and a text.
        """
        record = record_of(pipe, inpaints)
        check_adapters(pipe)
        return cls(pipe, record, objective_of(facts(pipe).objective, pipe.scheduler))

    @property
    def flow(self) -> bool:
        """Whether the denoiser answers a velocity from latents to noise."""
        return isinstance(self.objective, Flow)

    @property
    def stream(self) -> str:
        """``"image"`` or ``"video"``."""
        return self.record.streams[0]

    @property
    def video(self) -> bool:
        """Whether latents have an axis of time."""
        return self.stream == VIDEO

    @property
    def device(self) -> torch.device:
        return self.pipe._execution_device

    @property
    def family(self) -> Family:
        """The record of the denoiser's attention."""
        return family_of(self.network(1.0))

    @property
    def embeds_guidance(self) -> bool:
        """Whether the denoiser takes a guidance scale as an input (Flux.1-dev)."""
        return bool(self.network(1.0).config.get("guidance_embeds"))

    def network(self, level: float) -> Any:
        """The denoiser that is in charge at a noise level."""
        if self.record.experts is not None:
            for name, (low, high) in self.record.experts(self.pipe).items():
                if low <= level <= high:
                    return getattr(self.pipe, name)
        for name in ("unet", "transformer", "transformer_2"):
            found = getattr(self.pipe, name, None)
            if found is not None:
                return found
        raise UnsupportedError(f"{type(self.pipe).__name__} has no denoiser")

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Latents of a picture or clip, one row: the mode of the posterior, nothing is drawn.

        Args:
            frames: uint8 (F, H, W, 3) or (H, W, 3), of a size that the model takes.
        """
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise UsageError(explain("frames", (frames.shape, str(frames.dtype)), "uint8 (F, H, W, 3)"))
        if not self.video and len(frames) > 1:
            raise UsageError(
                f"{type(self.pipe).__name__} makes pictures; got a clip of {counted(len(frames), 'frame')}"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float()
        return self.encode_pixels(pixels / 127.5 - 1)

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of one row, likewise, from pixels (3, F, H, W) in -1..1, float32."""
        with self._exact_vae():
            found = self.record.encode(self.pipe, Media(pixels.to(self.device)), None)
        return found[self.stream][None].to(self.device).float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pixels of one row of latents, uint8 (F, H, W, 3); F is 1 of a picture.

        Raises:
            ArtifactError: values that are NaN or infinite.
        """
        with self._exact_vae():
            given = latents[:, :, None] if not self.video and _of_clips(self.pipe.vae) else latents
            pixels = self.codec.decode(self.pipe.vae, given).float()
        if not bool(torch.isfinite(pixels).all()):
            raise ArtifactError("the model returned NaN or infinite pixels; try --dtype float32 or other weights")
        pixels = pixels[0] if pixels.ndim == 5 else pixels[0][:, None]
        values = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
        return values.permute(1, 2, 3, 0).cpu().numpy()

    @contextlib.contextmanager
    def _exact_vae(self) -> Iterator[None]:
        """The autoencoder in float32 meanwhile, where its configuration says that float16 is too coarse for it."""
        vae = self.pipe.vae
        before = next(vae.parameters()).dtype
        coarse = before == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if coarse:
            vae.to(torch.float32)
        try:
            yield
        finally:
            if coarse:
                vae.to(before)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], slots: int | None = None) -> Conditions:
        """What the denoiser is told of prompts, one row each.

        Args:
            prompts: texts; "" is the unconditional one.
            slots: text tokens of encoders that leave it open; None = the family's published number.
        """
        made = self.record.text(self.pipe, list(prompts), self.record.slots if slots is None else slots)
        return Conditions({name: torch.stack([row[name] for row in made]).to(self.device) for name in made[0]})

    def predict(
        self,
        latents: torch.Tensor,
        level: float,
        conditions: Conditions,
        *,
        guidance: float | Sequence[float] | None = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The denoiser's answers (B, ...), float32: noise, velocity, or noise minus latents, as the objective says.

        Args:
            latents: (B, ...) noisy rows.
            level: their noise level.
            conditions: of as many rows.
            guidance: value for denoisers that take a guidance scale as an input, for all rows or one a row; others
                ignore it. None = the family's usual one.
            beside: (B, c, h, w), what a denoiser that was made to inpaint reads beside, as its record makes it.

        Nothing is kept for gradients unless ``latents`` need them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            return self._predict(latents, level, conditions, guidance, beside)

    def _predict(
        self,
        latents: torch.Tensor,
        level: float,
        conditions: Conditions,
        guidance: float | Sequence[float] | None,
        beside: torch.Tensor | None,
    ) -> torch.Tensor:
        network, count = self.network(level), len(latents)
        levels = torch.full((count,), level, dtype=torch.float64, device=latents.device).float()
        media = {}
        if self.record.told is not None:
            factor = self.pipe.vae_scale_factor
            told = self.record.told(latents.shape[-2] * factor, latents.shape[-1] * factor)
            media = {name: value.to(latents.device).expand(count, *value.shape) for name, value in told.items()}
        told_guidance: Any = self.record.guidance if guidance is None else guidance
        if not isinstance(told_guidance, (int, float)):
            told_guidance = torch.tensor(list(told_guidance), dtype=torch.float32, device=latents.device)
        timestep = self.objective.timesteps(levels)
        if beside is not None:
            media["beside"] = beside
        call = Call(
            self.pipe, network, {self.stream: latents}, levels, timestep, media, dict(conditions.tensors), told_guidance
        )
        arguments = self.record.arguments(call)
        with silenced(self.pipe):
            return self.record.answers(network(**arguments), call)[self.stream].float()

    def parts(self, level: float) -> tuple[float, float]:
        """``signal`` and ``spread`` of a noise level; 1 and 0 at level 0."""
        signal, spread = self.objective.parts(torch.tensor([level]), torch.zeros(1, dtype=torch.float64))
        return float(signal), float(spread)

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, level: float) -> torch.Tensor:
        """Noisy latents at a level."""
        signal, spread = self.parts(level)
        return signal * clean + spread * noise

    def clean(self, noisy: torch.Tensor, answer: torch.Tensor, level: float) -> torch.Tensor:
        """The clean latents that an answer stands for."""
        return self.objective.clean(noisy, answer, self._level(level, noisy))

    def noise(self, noisy: torch.Tensor, answer: torch.Tensor, level: float) -> torch.Tensor:
        """The noise that an answer stands for."""
        return self.objective.noise(noisy, answer, self._level(level, noisy))

    def _level(self, level: float, like: torch.Tensor) -> torch.Tensor:
        return torch.full((len(like),), level, dtype=like.dtype, device=like.device)

    def levels(self, steps: int, like: torch.Tensor, spacing: str = "own") -> tuple[float, ...]:
        """Noise levels of a run, falling, with 0 at the end; see :func:`genkit.editing.shared.levels.levels_of`.

        Args:
            steps: denoising steps. like: latents of the run. spacing: "own" or "lcm".
        """
        return levels_of(self.pipe, self.record, self.objective, steps, tuple(like.shape[1:]), spacing)

    def draw(self, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Normal noise of the shape of ``like``; the same on every device for a generator of the CPU."""
        from diffusers.utils.torch_utils import randn_tensor

        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=torch.float32)


def record_of(pipe: Any, inpaints: bool = False) -> Training:
    """How the denoiser of a pipeline from text is called by a method that edits.

    Args:
        pipe: the pipeline, or parts of it without weights: only configurations are read.
        inpaints: whether the method gives mask and masked picture to a denoiser that reads them.

    Raises:
        UnsupportedError: a family that genkit cannot call, or one that needs more than a picture and a text.
    """
    record = called(pipe, inpaints)
    name = type(pipe).__name__
    if AUDIO in record.streams:
        raise UnsupportedError(f"{name} makes video and sound together; editing takes models of pictures or videos")
    if record.needs or record.takes:
        needed = ", ".join(record.needs or record.takes)
        raise UnsupportedError(
            f"{name} is told pictures beside the text ({needed}); editing takes the family's text-to-image or "
            "text-to-video pipeline"
        )
    check_channels(pipe)
    if record.beside is not None and not inpaints:
        raise UnsupportedError(
            f"the denoiser of this {name} was made to inpaint and reads a mask beside its latents; take genkit "
            "inpaint (genkit.HDPainterPipeline), or a checkpoint from text"
        )
    return record


def check_channels(pipe: Any) -> None:
    """Refuse a UNet that reads something else beside its latents than a mask and a masked picture."""
    channels = getattr(pipe.vae.config, "latent_channels", None)
    if getattr(pipe, "unet", None) is None or channels is None:
        return
    found = pipe.unet.config.in_channels
    if found not in (channels, 2 * channels + 1):
        raise UnsupportedError(
            f"the denoiser of this {type(pipe).__name__} reads {counted(found, 'channel')}; known are those "
            f"of {channels} "
            f"(latents) and, for inpainting, of {2 * channels + 1} (with a mask and a masked picture)"
        )


def _of_clips(vae: Any) -> bool:
    """Whether an autoencoder takes clips, also where the model makes pictures (Qwen-Image): its layers tell."""
    return any(isinstance(layer, torch.nn.Conv3d) for layer in vae.modules())
