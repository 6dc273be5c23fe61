"""FlowEdit as a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genkit.control import Rule
from genkit.editing.flow_edit.sampler import SOURCE, TARGET, flow_edit
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, first_step
from genkit.errors import UnsupportedError, UsageError, explain


class FlowEditPipeline(EditPipeline):
    """Edit with a flow model (Flux, Stable Diffusion 3, Wan, ...) without inversion.

    Source: FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models (Kulikov et al., 2024).

    Raises:
        UnsupportedError: a model that is no flow model; :class:`genkit.InfEditPipeline` is the like for those.
    """

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        if not self.model.flow:
            raise UnsupportedError(
                f"flowedit takes flow models (Flux, Stable Diffusion 3, Wan, ...), and {type(pipe).__name__} is none; "
                "infedit does the like for it"
            )

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        prompt: str,
        source_prompt: str,
        *,
        negative_prompt: str = "",
        source_negative_prompt: str = "",
        num_inference_steps: int = 28,
        strength: float = 24 / 28,
        plain_steps: int = 0,
        draws: int = 1,
        guidance_scale: float = 5.5,
        source_guidance_scale: float = 1.5,
        rules: Sequence[Rule] = (),
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Edit a picture or clip. The defaults are those published for Flux.1-dev; for Stable Diffusion 3 they are 50
        steps, strength 0.66 and guidance 13.5 and 3.5.

        Args:
            image: PIL picture, uint8 (H, W, 3), or a clip: a list of pictures or uint8 (F, H, W, 3).
            prompt: what the result shows.
            source_prompt: what the input shows.
            negative_prompt, source_negative_prompt: what guidance leads away from.
            num_inference_steps: of a whole run.
            strength: share of the steps that are run (``n_max`` of the publication): less stays closer to the input.
            plain_steps: last steps that follow the prompt alone (``n_min``).
            draws: draws of noise averaged in a step (``n_avg``); each costs as much as the step.
            guidance_scale, source_guidance_scale: of both prompts, 1 = none.
            rules: further rules of a control; the rows are "source" and "target". Weights of words:
                :func:`genkit.control.words.word_rules`.
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step with (done, in all, the edit's latents as they stand).

        Cost: per step two rows, four with guidance, times ``draws``.

        Raises:
            UsageError: a share outside 0..1, no draw, or an input that is no picture.
        """
        if draws < 1:
            raise UsageError(explain("draws", draws, "1 or more"))
        model = self.model
        work, source = self._work(image, multiple)
        levels = model.levels(num_inference_steps, source)
        steps = len(levels) - 1
        if not 0 <= plain_steps <= steps:
            raise UsageError(explain("plain_steps", plain_steps, f"0 to {steps}"))
        branches = Branches(
            model,
            {
                SOURCE: Branch(source_prompt, source_negative_prompt, source_guidance_scale),
                TARGET: Branch(prompt, negative_prompt, guidance_scale),
            },
            slots=max_sequence_length,
        )
        with branches.under(rules):
            edited = flow_edit(
                model, source, branches, levels, start=first_step(steps, strength), plain=plain_steps, draws=draws,
                generator=generator, progress=progress,
            )  # fmt: skip
        return self._output(work, edited)
