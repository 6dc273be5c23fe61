"""Image to image for every family: the baseline that knows no source prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genkit.control import Rule
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, first_step
from genkit.editing.shared.walk import step


class ImageToImagePipeline(EditPipeline):
    """Noise a picture or clip up to ``strength`` and denoise it with the prompt.

    Source: SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2021).
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        prompt: str,
        *,
        negative_prompt: str = "",
        strength: float = 0.7,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        eta: float | None = None,
        rules: Sequence[Rule] = (),
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Edit a picture or clip.

        Args:
            image: PIL picture, uint8 (H, W, 3), or a clip: a list of pictures or uint8 (F, H, W, 3).
            prompt: what the result shows.
            negative_prompt: what guidance leads away from.
            strength: share of the steps that are run, 0..1: more changes more. At 1 nothing is left of the input.
            num_inference_steps: of a whole run; ``strength`` of them cost time.
            guidance_scale: of classifier-free guidance, 1 = none; the input of models distilled with one.
            eta: share of fresh noise in every step; None = the scheduler's: 1 where it samples stochastically, else 0.
            rules: further rules of a control; the row is "target". Weights of words:
                :func:`genkit.control.words.word_rules`.
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step with (done, in all, clean latents as they stand).

        Cost: per step one row, two with guidance.

        Raises:
            UsageError: a share outside 0..1, or an input that is no picture.
        """
        model = self.model
        work, source = self._work(image, multiple)
        levels = model.levels(num_inference_steps, source)
        steps = len(levels) - 1
        start = first_step(steps, strength)
        branches = Branches(
            model, {"target": Branch(prompt, negative_prompt, guidance_scale)}, slots=max_sequence_length
        )
        if eta is None:
            eta = 1.0 if model.pipe.scheduler.config.get("stochastic_sampling") else 0.0
        # A run over all steps begins with noise alone, as a run from text does.
        noise = model.draw(source, generator)
        latents = noise if start == 0 else model.noised(source, noise, levels[start])
        with branches.under(rules):
            for index in range(start, steps):
                level, following = levels[index], levels[index + 1]
                answer = branches({"target": latents}, level, index, steps)["target"]
                made = model.clean(latents, answer, level)
                fresh = model.draw(source, generator) if eta and following > 0 else None
                latents = step(model, latents, answer, level, following, eta=eta, fresh=fresh)
                if progress is not None:
                    progress(index + 1 - start, steps - start, made)
        return self._output(work, latents)
