"""Inpainting: a part of a picture is made anew by a prompt, and the rest stays as it is, bit for bit."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from genkit.editing.hd_painter.attention import PromptAttention, frozen
from genkit.editing.hd_painter.known import beside_latents, filled, latent_mask, matched, without_border
from genkit.editing.hd_painter.place import Place, as_mask, native_side, usual_context
from genkit.editing.hd_painter.rasg import mixed
from genkit.editing.hd_painter.upscale import factor_of, upscale
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, as_frames, config_of, size_rule
from genkit.editing.shared.walk import noisier, step, walked
from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.media.canvas import Mask, paste

#: The branch of the one picture that is made.
ROLE = "picture"


class HDPainterPipeline(EditPipeline):
    """Inpainting with prompt-aware attention and attention guidance, for models made for inpainting and for others.

    Denoisers that were made to inpaint (UNets with five further channels, FLUX Fill) read mask and picture beside the
    noisy latents; FLUX Fill wants ``guidance_scale`` 30. Others make
    the unknown part alone: after every step the known part is the picture's, at that step's noise level (Blended Latent
    Diffusion, Avrahami et al. 2022). Either way pixels outside the mask come back bit for bit.

    Source: HD-Painter (Manukyan et al., 2023), arXiv:2312.14091.
    """

    inpaints: ClassVar[bool] = True

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        if self.model.video:
            raise UnsupportedError(f"{type(pipe).__name__} makes videos; inpainting takes models of pictures")
        self.beside = self.model.record.beside is not None

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        mask: Mask | np.ndarray,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        painta: float = 0.5,
        rasg: float = 0.0,
        inset: float = 0.5,
        resample: int = 1,
        eta: float = 0.0,
        context: int | None = None,
        least: tuple[int, int] | None = None,
        longest: int | None = None,
        upscaler: Any = None,
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Make a part of a picture anew.

        Args:
            image: PIL picture or uint8 (H, W, 3).
            mask: :class:`genkit.media.canvas.Mask`, or bool (H, W): True is made anew.
            prompt: what appears there, best with its background: "a red circle on a black background".
            negative_prompt: what guidance leads away from.
            num_inference_steps: denoising steps.
            guidance_scale: of classifier-free guidance, 1 = none; the input of models distilled with one.
            painta: share of the steps, from the first on, in which unknown tokens read known ones only as far as those
                agree with the prompt (PAIntA); 0 leaves it out. Costs the self-attention of two resolutions again.
            rasg: how far each step is moved so that the prompt's attention covers the mask (RASG), as a share of the
                deviation of DDIM's noise; the paper's eta of 0.1 counts in other units and is about 0.01 of these.
                0 leaves it out. Costs a backward pass in every step, two to
                three times the time and several times the memory; for UNets of diffusion models only.
            inset: share of the steps, from the first on, in which latents at the mask's border count as known, so that
                an object is begun inside the mask and not cut off by it; 0 for none. Not for denoisers that were
                trained to inpaint.
            resample: how often each step but those of the last tenth is taken, with fresh noise in between (RePaint,
                Lugmayr et al. 2022): what is made and what is known grow together, so that objects are cut off less.
                1 is HD-Painter; 2 costs twice the time. Not for denoisers that were trained to inpaint.
            eta: share of DDIM's noise that is drawn anew in every step; 0 draws none.
            context: pixels around the mask that the model sees; None = :func:`usual_context`. The smaller it is, the
                larger is the object in what the model makes, and the fewer tokens there are.
            least: height and width that the model sees at least; None = those it was trained on.
            longest: a part whose longer side is more is scaled to this and back, and it is said; None = never.
            upscaler: a loaded StableDiffusionUpscalePipeline: a part that is larger than ``longest`` is made at a
                quarter of its size and drawn large by it, with the known part of the large picture (20 steps more).
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step with (done, in all, clean latents as they stand).

        Returns:
            The picture at its own size. ``details["canvas"]`` is what the model made, before it was pasted.

        Raises:
            UsageError: a mask of another size or without any pixel; an image that is no picture; ``resample`` below 1.
        """
        if resample < 1:
            raise UsageError(explain("resample", resample, "1 or more"))
        frames = as_frames(image)
        if len(frames) > 1:
            raise UsageError(f"inpainting takes one picture, got {counted(len(frames), 'frame')}")
        picture, mask = frames[0], as_mask(mask, frames[0])
        model = self.model
        if least is None:
            side = native_side(config_of(self.pipe)) or 1
            # What is smaller than a model was trained on is not blown up by a margin of its mirror image.
            least = (min(side, picture.shape[0]), min(side, picture.shape[1]))
        if context is None:
            context = usual_context(mask, self.beside)
        factor = 1 if upscaler is None else factor_of(upscaler)
        place = Place.of(picture, mask, multiple or size_rule(self.pipe)[0], context, least, longest, factor)
        shown, inside = place.working
        known = model.encode(shown if self.beside else filled(shown, inside))
        unknown = latent_mask(inside, (known.shape[-2], known.shape[-1]), known.device)
        beside = beside_latents(model, shown, inside) if self.beside else None
        core = without_border(unknown)
        told = list(place.told(picture))
        if not prompt.strip() and (painta or rasg):
            painta = rasg = 0.0
            told.append("an empty prompt names nothing to attend to: PAIntA and RASG are left out")
        attention = PromptAttention(model, prompt, unknown, painta, bool(rasg), max_sequence_length)
        branches = Branches(
            model,
            {ROLE: Branch(prompt, negative_prompt, guidance_scale)},
            control=attention,
            together=True,
            slots=max_sequence_length,
            beside=beside,
        )
        levels = model.levels(num_inference_steps, known)
        steps = len(levels) - 1
        noise = model.draw(known, generator)
        latents = noise
        with attention:
            walk = walked(steps, 1 if self.beside else resample)
            for done, (index, again) in enumerate(walk, 1):
                level, following = levels[index], levels[index + 1]
                last = following <= 0
                answer, gradient = _answer(branches, attention, latents, level, index, steps, bool(rasg) and not last)
                made = model.clean(latents, answer, level)
                drawn = model.draw(known, generator) if eta and not last else None
                share, fresh = mixed(drawn, eta, gradient, rasg)
                latents = step(model, latents, answer, level, following, eta=share, fresh=fresh)
                if not self.beside:
                    free = core if index < inset * steps else unknown
                    latents = torch.where(free > 0, latents, model.noised(known, noise, following))
                    made = torch.where(free > 0, made, known)
                if again:
                    latents = noisier(model, latents, following, level, model.draw(known, generator))
                if progress is not None:
                    progress(done, len(walk), made)
        canvas = model.decode(latents)[0]
        self.pipe.maybe_free_model_hooks()
        if place.factor > 1:
            low = paste(shown, matched(canvas, shown, inside), Mask(inside))
            canvas = upscale(
                upscaler, low, *place.large, prompt, negative_prompt=negative_prompt, generator=generator
            )  # fmt: skip
        part = matched(place.canvas.crop(canvas), place.canvas.picture, place.mask)
        pasted = paste(picture, place.window.put(picture, part), mask)
        return EditOutput(pasted[None], latents, tuple(told), {"canvas": canvas})


def _answer(
    branches: Branches,
    attention: PromptAttention,
    latents: torch.Tensor,
    level: float,
    index: int,
    steps: int,
    steered: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The denoiser's answer after guidance, and RASG's gradient where the step is steered."""
    if not steered:
        return branches({ROLE: latents}, level, index, steps)[ROLE], None
    with torch.enable_grad(), frozen(attention.network):
        latents = latents.detach().requires_grad_(True)
        answer = branches({ROLE: latents}, level, index, steps)[ROLE]
        gradient = attention.gradient(latents)
    return answer.detach(), gradient
