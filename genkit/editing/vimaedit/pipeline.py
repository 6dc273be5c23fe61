"""ViMAEdit as a pipeline: an edit that finds its own region and is bold only where it matters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from genkit.control import Control, Rule
from genkit.editing.shared.blend import map_grid
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, share
from genkit.editing.shared.prompts import aligned, positions
from genkit.editing.vimaedit.grounding import Grounding
from genkit.editing.vimaedit.rules import SOURCE, TARGET, Reader, injection
from genkit.editing.vimaedit.sampling import calibrated, flow_step, table_step
from genkit.editing.vimaedit.vision import vision
from genkit.errors import UnsupportedError, UsageError, explain

#: Tokens of the self-attention that maps are spread along: 32 x 32 of Stable Diffusion at 512 pixels.
_TOKENS = 1024
#: Share of the steps in which maps of image prompts are the source's.
_IMAGES = 0.1


class ViMAEditPipeline(EditPipeline):
    """Edit without inversion: the source explains itself exactly, the words that change find their region by
    themselves, and inside its core the sampling is random while it is deterministic outside.

    Source: ViMAEdit: Vision-guided and Mask-enhanced Adaptive Editing for prompt-based image editing.
    """

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        if self.model.video:
            raise UnsupportedError(f"{type(pipe).__name__} makes videos; ViMAEdit takes models of pictures")

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        prompt: str,
        source_prompt: str,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        source_guidance_scale: float = 1.0,
        keep: float = 0.6,
        keep_words_maps: float = 0.4,
        words: Sequence[str] = (),
        source_words: Sequence[str] = (),
        threshold: float = 0.5,
        critical: float = 0.8,
        start_blend: float = 0.2,
        rounds: int = 5,
        spread_keep: float = 0.5,
        eta: float = 1.0,
        image_guidance: bool = False,
        image_scale: float = 0.4,
        image_uncond: str = "source",
        clip_text: tuple[Any, Any] | None = None,
        rules: Sequence[Rule] = (),
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Edit a picture.

        Args:
            image: PIL picture or uint8 (H, W, 3).
            prompt, source_prompt: what the result and the input show.
            negative_prompt: what guidance leads the target away from.
            num_inference_steps: denoising steps.
            guidance_scale, source_guidance_scale: of both prompts, 1 = none.
            keep: share of the steps in which the target takes the source's self-attention maps, 0..1.
            keep_words_maps: share of the steps in which it takes the cross-attention maps of shared words.
            words: words of the prompt that change; where they act the picture changes. None given: no region at all,
                and nothing random.
            source_words: words of the source prompt that they replace; where these act it changes too.
            threshold: of the words' maps, for what may differ from the source.
            critical: of the words' maps, for where the sampling is random.
            start_blend: share of the steps before which no region is used.
            rounds, spread_keep: how often maps are spread along self-attention, and what share of a round stays.
            eta: variance in the critical region.
            image_guidance: tell a loaded image prompt adapter what the result's image embedding should be.
            image_scale: of the adapter. image_uncond, clip_text: see :func:`genkit.editing.vimaedit.vision.vision`.
            rules: further rules of a control; the rows are "source" and "target". Weights of words:
                :func:`genkit.control.words.word_rules`.
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step with (done, in all, clean latents as they stand).

        Returns:
            The edit; ``details`` holds ``mask`` and ``critical``, float (1, 1, h, w), once they were used.

        Cost: three rows a step, two without guidance, and with words the queries and keys of a few layers.

        Raises:
            UsageError: a share outside 0..1, a word that the prompts do not have, an input that is no picture.
            UnsupportedError: image guidance without its adapter or text model.
        """
        model = self.model
        for name, value in (
            ("keep", keep), ("keep_words_maps", keep_words_maps), ("threshold", threshold), ("critical", critical),
            ("start_blend", start_blend), ("eta", eta),
        ):  # fmt: skip
            share(value, name)
        if num_inference_steps < 1:
            raise UsageError(explain("steps", num_inference_steps, "1 or more"))
        work, source = self._work(image, multiple)
        levels = model.levels(num_inference_steps, source)
        steps = len(levels) - 1
        rows = Branches(
            model,
            {
                SOURCE: Branch(source_prompt, "", source_guidance_scale),
                TARGET: Branch(prompt, negative_prompt, guidance_scale),
            },
            slots=max_sequence_length,
        )
        size = (int(source.shape[-2]), int(source.shape[-1]))
        pairs = aligned(self.pipe, source_prompt, prompt, slots=rows.slots)
        injected = injection(
            pairs, steps, size[0] * size[1] // 4, keep=keep, words=keep_words_maps,
            images=_IMAGES if image_guidance else 0.0,
        )  # fmt: skip
        rules = [*injected, *rules]
        reader = None
        if words:
            texts = {TARGET: (prompt, words), SOURCE: (source_prompt, source_words)}
            tokens = {
                role: positions(self.pipe, text, tuple(chosen), rows.slots)
                for role, (text, chosen) in texts.items()
                if chosen
            }
            reader = Reader(tokens, map_grid(model, source), map_grid(model, source, _TOKENS), rounds, spread_keep)
            rules += reader.rules()
        grounding = Grounding(size, start_blend)
        noise = model.draw(source, generator)
        latents = dict.fromkeys((SOURCE, TARGET), model.noised(source, noise, levels[0]))
        blend = core = None
        with ExitStack() as held:
            if image_guidance:
                picture = self._picture(work.frames)
                both = (source_prompt, prompt)
                held.enter_context(vision(self.pipe, picture, both, rows.rows, image_scale, image_uncond, clip_text))
            if rules:
                rows.control = held.enter_context(Control(self.pipe, rules))
            for index in range(steps):
                level = levels[index]
                answers = rows(latents, level, index, steps)
                if reader is not None:
                    grounding.add(reader.maps(rows.control).to(source.device))
                core, blend = (grounding.region(index, steps, value) for value in (critical, threshold))
                clean = {role: model.clean(latents[role], answers[role], level) for role in latents}
                clean = {role: calibrated(each, clean[SOURCE], source) for role, each in clean.items()}
                fresh = model.draw(source, generator) if core is not None and eta else torch.zeros_like(source)
                latents = {
                    role: self._step(latents[role], clean[role], fresh, levels[index : index + 2], core, eta)
                    for role in latents
                }
                if blend is not None:
                    latents[TARGET] = latents[SOURCE] + blend * (latents[TARGET] - latents[SOURCE])
                if progress is not None:
                    progress(index + 1, steps, clean[TARGET])
        details: dict[str, Any] = {} if blend is None else {"mask": blend, "critical": core}
        return self._output(work, latents[TARGET], **details)

    def _step(
        self, noisy: torch.Tensor, clean: torch.Tensor, fresh: torch.Tensor, levels: Sequence[float],
        region: torch.Tensor | None, eta: float,
    ) -> torch.Tensor:  # fmt: skip
        where = 0.0 if region is None else region
        if self.model.flow:
            return flow_step(noisy, clean, fresh, levels[0], levels[1], where, eta)
        here, there = (self.model.parts(level)[0] ** 2 for level in levels)
        return table_step(noisy, clean, fresh, here, there, where, eta)

    @staticmethod
    def _picture(frames: Any) -> Any:
        from PIL import Image

        return Image.fromarray(frames[0])
