"""Wan with frames that are given: a first picture, a last one, both, or how the clip begins.

The model has to be trained for it: given latent frames lie in the sequence at noise level 0, and their tokens are told
so by timesteps of their own, as the 5B model of Wan 2.2 has it for its first frame (Wan Team, 2025, arXiv:2503.20314;
``expand_timesteps`` in Diffusers). A last picture is encoded alone and stands behind the clip, one latent frame more;
that leads the clip there, and :mod:`genkit.pipelines.tasks.inputs.last_frame` makes it the last frame itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

from genkit.errors import UsageError, counted, explain
from genkit.families.wan import CODEC
from genkit.pipelines.tasks.inputs.last_frame import held
from genkit.pipelines.tasks.inputs.pictures import as_ready

Pictures = Any


@dataclass(frozen=True)
class Given:
    """Clean latents, (B or 1, C, t, h, w) each; None where nothing is given there.

    Args:
        front: the latent frames that the clip begins with.
        last: one latent frame behind the clip.
    """

    front: torch.Tensor | None
    last: torch.Tensor | None

    def put(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, T, h, w) with their front as it is given."""
        if self.front is None:
            return latents
        return torch.cat([_rows(self.front, latents), latents[:, :, self.front.shape[2] :]], 2)

    def asked(self, latents: torch.Tensor, timestep: torch.Tensor, patch: Sequence[int]) -> Mapping[str, torch.Tensor]:
        """What the denoiser is called with: latents with all that is given, and a timestep (B, N) for every token.

        Args:
            latents: (B, C, T, h, w), noisy.
            timestep: (B,), theirs, or (B, N) with one for every token of the clip.
            patch: latent frames, rows and columns of a token.
        """
        frames = latents.shape[2]
        if timestep.ndim == 2:  # expand_timesteps: one for every token, and before anything is given all are alike
            timestep = timestep[:, 0]
        levels = timestep[:, None].repeat(1, frames)
        levels[:, : 0 if self.front is None else self.front.shape[2]] = 0
        made = self.put(latents)
        if self.last is not None:
            made = torch.cat([made, _rows(self.last, latents)], 2)
            levels = torch.nn.functional.pad(levels, (0, 1))
        tokens = (latents.shape[3] // patch[1]) * (latents.shape[4] // patch[2])
        return {"hidden_states": made, "timestep": levels.repeat_interleave(tokens, 1)}


def _rows(given: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Given latents for every row of a batch, which holds the samples of one prompt side by side."""
    return given.to(like).repeat_interleave(like.shape[0] // given.shape[0], 0)


class WanGivenFramesPipeline(WanPipeline):
    """Videos from a prompt and given frames, for a Wan model that is trained for them, such as ``toy-video``.

    ``WanGivenFramesPipeline.from_pipe(pipe)`` makes one of a loaded :class:`diffusers.WanPipeline`; weights are shared.
    The first frame alone can also be given to the stock ``WanImageToVideoPipeline`` with ``expand_timesteps=True``,
    with the same result.
    """

    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Pictures = None,
        last_image: Pictures = None,
        beginning: Pictures = None,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        hold_last: bool = True,
    ) -> WanPipelineOutput | tuple:
        """Make clips that begin, or end, with what is given.

        Args:
            prompt: or one for every clip.
            negative_prompt: what to keep away from; see ``guidance_scale``.
            image: the first frame, a Pillow picture, an array (H, W, 3) or a tensor (3, H, W), uint8 or in 0..1; a list
                of one for every prompt.
            last_image: the last frame, likewise.
            beginning: frames that the clip begins with, in place of ``image``: 1 + 4 n of them and fewer than
                ``num_frames``, as a list of pictures or an array (F, H, W, 3); one clip for all prompts.
            height, width: pixels; given pictures are scaled to them.
            num_frames: of the clip, 1 + 4 n. A last picture is its last frame and no frame more.
            num_inference_steps: steps; each calls the denoiser twice where ``guidance_scale`` is above 1.
            guidance_scale: how far to go beyond the negative prompt.
            num_videos_per_prompt, generator, latents, prompt_embeds, negative_prompt_embeds, output_type, return_dict,
                attention_kwargs, callback_on_step_end, callback_on_step_end_tensor_inputs, max_sequence_length: as in
                :class:`diffusers.WanPipeline`.
            hold_last: the last picture is put in the last frame's place in three of the steps; off, the clip is only
                led there and ends mostly a frame's way before. Any sampler holds it; those whose own last step does not
                end at the clean clip (DEIS and SA as Diffusers has them) are led to it.

        Returns:
            ``WanPipelineOutput`` with ``frames`` as ``output_type`` says, or a tuple of them. Nothing given is the
            stock pipeline's call.

        Raises:
            UsageError: two beginnings, a beginning of a wrong length, or as many pictures as there are no prompts; what
                is no picture, or has values beyond its range; two transformers, each for a part of the noise levels
                (14B of Wan 2.2).

        Cost: a last picture adds one latent frame to every call of the denoiser, and with ``hold_last`` three times
            what it takes to decode 9 frames and to encode them twice; other encoding is small beside them.
        """
        if self.transformer_2 is not None or self.transformer is None:
            raise UsageError("given frames: a model of two transformers has none that is trained for them")
        ends = None if last_image is None else self._pixels("last_image", last_image, (height, width))
        given = self._encode(image, ends, beginning, (height, width), num_frames)
        asked = prompt if prompt is not None else prompt_embeds
        count = 1 if asked is None or isinstance(asked, str) else len(asked)  # without either the stock call refuses
        for name, part in (("image", given.front), ("last_image", given.last)):
            if part is not None and count % part.shape[0]:
                raise UsageError(
                    f"{name}: got {counted(part.shape[0], 'picture')} for {counted(count, 'prompt')}; give "
                    "one, or one for each"
                )

        def after(pipe: Any, step: int, time: Any, values: dict) -> dict:
            if callback_on_step_end is not None:
                values = {**values, **(callback_on_step_end(pipe, step, time, values) or {})}
            if "latents" in values:
                values["latents"] = given.put(values["latents"])
            return values

        # Callbacks of Diffusers' own kind say themselves what they read.
        reads = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        inputs = list(dict.fromkeys(["latents", *reads]))
        with _asked(self.transformer, given), held(self, ends if hold_last else None):
            return super().__call__(
                prompt=prompt, negative_prompt=negative_prompt, height=height, width=width, num_frames=num_frames,
                num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                num_videos_per_prompt=num_videos_per_prompt, generator=generator, latents=latents,
                prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, output_type=output_type,
                return_dict=return_dict, attention_kwargs=attention_kwargs, callback_on_step_end=after,
                callback_on_step_end_tensor_inputs=inputs, max_sequence_length=max_sequence_length,
            )  # fmt: skip

    def _encode(
        self, image: Pictures, last: torch.Tensor | None, beginning: Pictures, size: tuple[int, int], frames: int
    ) -> Given:
        """What is given, as latents; ``last`` as pixels."""
        if image is not None and beginning is not None:
            raise UsageError("image and beginning are both the front of the clip; give one of them")
        front = None
        if image is not None:
            front = self._latents(self._pixels("image", image, size)[:, :, None])
        elif beginning is not None:
            pixels = self._pixels("beginning", beginning, size)
            each = self.vae_scale_factor_temporal
            if frames % each != 1:
                frames = frames // each * each + 1  # as the stock call rounds them
            if len(pixels) % each != 1 or len(pixels) >= frames:
                allowed = f"1 + {each} n frames, fewer than the clip's {frames}"
                raise UsageError(explain("beginning", counted(len(pixels), "frame"), allowed))
            front = self._latents(pixels.transpose(0, 1)[None])
        behind = None if last is None else self._latents(last[:, :, None])
        return Given(front, behind)

    def _pixels(self, name: str, pictures: Pictures, size: tuple[int, int]) -> torch.Tensor:
        """(N, 3, H, W) in -1..1."""
        ready = as_ready(name, pictures)
        return torch.cat([self.video_processor.preprocess(each, height=size[0], width=size[1]) for each in ready])

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised latents of pixels (B, 3, F, H, W)."""
        return CODEC.encode(self.vae, pixels)


@contextmanager
def _asked(transformer: Any, given: Given) -> Iterator[None]:
    """Within the block the transformer is called with what is given, and answers for the clip alone.

    Its hooks stand before those of patches, which see the sequence as it is computed.
    """
    if given.front is None and given.last is None:
        yield
        return
    patch = transformer.config.patch_size

    def before(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, **given.asked(kwargs["hidden_states"], kwargs["timestep"], patch)}

    def behind(_: Any, args: tuple, kwargs: dict, answer: tuple) -> tuple:
        made = answer[0]
        return (made if given.last is None else made[:, :, :-1], *answer[1:])

    handles = [
        transformer.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        transformer.register_forward_hook(behind, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
