"""AttenST as a pipeline: a picture in the manner of another one, without training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from genkit.control import Control, Take, Where
from genkit.editing.attenst.inversion import Line, invert, line
from genkit.editing.attenst.layers import prompt_layers, style_layers
from genkit.editing.attenst.statistics import mix_statistics
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.image_prompt import adapters, embedding, image_prompts
from genkit.editing.shared.model import EditModel
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, Work, as_frames, share
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.facts import FLOW

CONTENT, STYLE, RESULT = "content", "style", "result"


class AttenSTPipeline(EditPipeline):
    """Style transfer by attention: the content asks, the style answers.

    Both pictures are inverted to noise. Their paths run beside the new picture's as rows of the same calls: in some
    layers its queries are led by the content's, and its keys and values are the style's.

    Source: AttenST: A Training-Free Attention-Driven Style Transfer Framework with Pre-Trained Diffusion Models.
    """

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        if self.model.video:
            raise UnsupportedError(f"{type(pipe).__name__} makes videos; style transfer takes models of pictures")

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        style: Input,
        *,
        prompt: str = "",
        style_prompt: str = "",
        source_prompt: str | None = None,
        negative_prompt: str = "",
        keep: float = 0.75,
        strength: float = 0.6,
        temperature: float = 2.25,
        layers: str | None = None,
        resample: int = 5,
        average_below: float = 0.0,
        num_inference_steps: int = 40,
        guidance_scale: float = 1.0,
        content_scale: float = 1.2,
        style_scale: float = 1.2,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Give a picture the manner of another one. Nothing is drawn at random: the same pictures give the same result.

        Args:
            image: the content, a PIL picture or uint8 (H, W, 3).
            style: the picture whose manner is taken; scaled to cover the content and cut, which is told.
            prompt: what the result shows; empty is fine. The published form appends words of praise to a caption.
            style_prompt, source_prompt: captions of the style and the content, for their inversion; the content's is
                ``prompt`` when left out.
            negative_prompt: what guidance leads away from.
            keep: how far the content's queries lead (gamma), 0..1; more keeps more of its shapes.
            strength: how far mean and spread of the start noise go to the style's (alpha_s), 0..1; more takes more of
                its colours.
            temperature: factor of the attention scores towards the style, above 1 sharper. 1.5 in the paper, whose
                code applies it twice: 2.25.
            layers: regular expression of the layers that take the style's keys and values; None = the model's usual
                ones, see :func:`genkit.editing.attenst.layers.style_layers`.
            resample: how often inversion asks anew at the point it found (K).
            average_below: noise level below which a step uses the mean of the answers, see
                :func:`genkit.editing.attenst.inversion.invert`; published 0.25.
            num_inference_steps: of the inversion and of the result.
            guidance_scale: of classifier-free guidance; 1 = none, as published.
            content_scale, style_scale: of image prompt adapters, where they are loaded: the first of two reads the
                content and the last one the style.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step of the inversion and of the result with (done, in all, clean latents as
                they stand).

        Returns:
            The picture; ``details`` holds the start points ``content_start`` and ``style_start``.

        Cost: per step of the inversion ``2 (resample + 1)`` rows, per step of the result 3; twice that with guidance.

        Raises:
            UsageError: a share outside 0..1, an input that is no picture, or layers that the model does not have.
        """
        model = self.model
        keep, strength = share(keep, "keep"), share(strength, "strength")
        if not temperature > 0:
            raise UsageError(explain("temperature", temperature, "a number above 0"))
        if resample < 0:
            raise UsageError(explain("resample", resample, "0 or more"))
        network = model.network(1.0)
        names = style_layers(model.family, network, layers)
        work, content = self._work(image, multiple)
        fitted, told = _covering(style, work)
        both = torch.cat([content, model.encode(fitted)])
        source_prompt = prompt if source_prompt is None else source_prompt
        levels = model.levels(num_inference_steps, content)
        lines = lines_of(model, levels)
        steps = len(lines)
        with ExitStack() as prompts:
            loaded = adapters(self.pipe)
            if loaded:
                silent = [embedding(self.pipe, self._picture(fitted), number) for number in range(loaded)]
                prompts.enter_context(image_prompts(self.pipe, silent, [{}] * loaded))
            texts = model.texts([source_prompt, style_prompt], max_sequence_length)

            def ask(points: torch.Tensor, index: int) -> torch.Tensor:
                return model.predict(points, levels[index], texts, guidance=1.0)

            points = invert(
                both, lines, ask, again=resample, average_below=average_below,
                after=progress and (lambda done: progress(done, 2 * steps, content)),
            )  # fmt: skip
        latents = mix_statistics(points[0][:1], points[0][1:], strength)
        rules = [
            Take("q", of=CONTENT, into=RESULT, blend=keep, temperature=temperature, where=Where(names=names)),
            Take("kv", of=STYLE, into=RESULT, where=Where(names=names)),
        ]
        with Control(self.pipe, rules) as control, ExitStack() as prompts:
            rows = {
                CONTENT: Branch(source_prompt, negative_prompt),
                STYLE: Branch(style_prompt, negative_prompt),
                RESULT: Branch(prompt, negative_prompt, guidance_scale),
            }
            branches = Branches(model, rows, control=control, together=True, slots=max_sequence_length)
            if loaded:
                prompts.enter_context(self._dual(work, fitted, loaded, content_scale, style_scale))
            for index, each in enumerate(lines):
                known = {CONTENT: points[index][:1], STYLE: points[index][1:]}
                answer = branches({**known, RESULT: latents}, levels[index], index, steps)[RESULT]
                made = model.clean(latents, answer, levels[index])
                latents = each.step(latents, answer)
                if progress is not None:
                    progress(steps + index + 1, 2 * steps, made)
        starts = {"content_start": points[0][:1], "style_start": points[0][1:]}
        return self._output(work, latents, told, **starts)

    def _dual(self, work: Work, style: np.ndarray, loaded: int, content_scale: float, style_scale: float) -> Any:
        """Cross-attention to both pictures beside the text's, or to the style alone with a single adapter."""
        where = prompt_layers(self.pipe.unet)
        pictures: list[tuple[np.ndarray, dict[str, float]]] = [(style, {where[1]: style_scale})]
        if loaded > 1:
            silent: list[tuple[np.ndarray, dict[str, float]]] = [(style, {})] * (loaded - 2)
            pictures = [(work.frames, {where[0]: content_scale}), *silent, *pictures]
        embeds = [embedding(self.pipe, self._picture(frames), n) for n, (frames, _) in enumerate(pictures)]
        return image_prompts(self.pipe, embeds, [scales for _, scales in pictures])

    @staticmethod
    def _picture(frames: np.ndarray) -> Any:
        from PIL import Image

        return Image.fromarray(frames.reshape(-1, *frames.shape[-3:])[0])


def lines_of(model: EditModel, levels: tuple[float, ...]) -> list[Line]:
    """The deterministic steps between noise levels, as lines in the model's answer."""
    kind = FLOW if model.flow else model.objective.prediction  # type: ignore[attr-defined]
    # A flow is told by its share of noise, the others by what is left of the signal's power.
    place = [level if model.flow else model.parts(level)[0] ** 2 for level in levels]
    return [line(kind, here, there, level) for here, there, level in zip(place, place[1:], levels, strict=False)]


def _covering(style: Input, work: Work) -> tuple[np.ndarray, tuple[str, ...]]:
    """A style picture at the working size: scaled to cover it, the middle cut out; and what is told of that."""
    from PIL import Image, ImageOps

    frame = as_frames(style)[0]
    height, width = work.frames.shape[1:3]
    if frame.shape[:2] == (height, width):
        return frame, ()
    fitted = ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS)
    line = f"the style of {frame.shape[1]}x{frame.shape[0]} is scaled and cut to the working size of {width}x{height}"
    return np.array(fitted), (line,)
