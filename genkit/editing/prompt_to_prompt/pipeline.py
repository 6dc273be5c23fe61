"""DDIM inversion (of flow models: their Euler steps backwards) and prompt-to-prompt, as a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genkit.control import Refine, Rule, Take, Where
from genkit.control.alignment import Alignment
from genkit.editing.shared.blend import WordMaps, map_grid, rules_of
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, share
from genkit.editing.shared.prompts import aligned, positions
from genkit.editing.shared.walk import step

SOURCE, TARGET = "source", "target"
#: Share of the steps before which nothing is blended: the picture is not yet there.
_BLIND = 0.2


class PromptToPromptPipeline(EditPipeline):
    """Invert a picture with its own prompt, then denoise both prompts from there while the target takes the source's
    attention maps: the classical baseline.

    Sources: Prompt-to-Prompt Image Editing with Cross Attention Control (Hertz et al., 2022); Denoising Diffusion
    Implicit Models (Song et al., 2020) for the inversion.
    """

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
        keep: float = 0.4,
        keep_maps: float = 0.8,
        words: Sequence[str] = (),
        threshold: float = 0.3,
        exact: bool = False,
        rules: Sequence[Rule] = (),
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        multiple: int | None = None,
        progress: Progress | None = None,
    ) -> EditOutput:
        """Edit a picture or clip.

        Args:
            image: PIL picture, uint8 (H, W, 3), or a clip: a list of pictures or uint8 (F, H, W, 3).
            prompt, source_prompt: what the result and the input show.
            negative_prompt: what guidance leads the target away from.
            num_inference_steps: of the inversion and of the denoising each.
            guidance_scale: of the target.
            source_guidance_scale: of the source in inversion and denoising: above 1 it no longer finds its way back.
            keep: share of the steps in which the target takes the source's self-attention maps, 0..1.
            keep_maps: share of the steps in which it takes the cross-attention maps of shared words.
            words: words of the prompt; only where they act the picture changes. None given: everywhere.
            threshold: of their maps, as a share of the largest value.
            exact: the source's row is set to the inverted latents before every step, so that it comes back exactly.
            rules: further rules of a control; the rows are "source" and "target". Weights of words:
                :func:`genkit.control.words.word_rules`.
            generator: nothing is drawn; taken for the sake of one form of call.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step, of the inversion too, with (done, in all, clean latents as they stand).

        Cost: one row a step of the inversion, two to four a step of the denoising.

        Raises:
            UsageError: a share outside 0..1, a word that the prompt does not have, an input that is no picture.
        """
        model = self.model
        share(keep, "keep"), share(keep_maps, "keep_maps")
        work, source = self._work(image, multiple)
        levels = model.levels(num_inference_steps, source)
        steps = len(levels) - 1
        of_source = Branch(source_prompt, "", source_guidance_scale)
        single = Branches(model, {SOURCE: of_source}, slots=max_sequence_length)
        path = self._inverted(source, single, levels, progress)
        both = Branches(
            model, {SOURCE: of_source, TARGET: Branch(prompt, negative_prompt, guidance_scale)},
            together=True, slots=max_sequence_length,
        )  # fmt: skip
        pairs = aligned(self.pipe, source_prompt, prompt, slots=max_sequence_length)
        maps = None
        if words:
            places = positions(self.pipe, prompt, tuple(words), max_sequence_length)
            maps = WordMaps(places, pairs, ((SOURCE, None),), TARGET, "change", map_grid(model, source))
        rules = [*_rules(pairs, steps, keep, keep_maps), *rules, *rules_of((maps,))]
        latents, mask = {SOURCE: path[0], TARGET: path[0]}, None
        with both.under(rules):
            for index in range(steps):
                level, following = levels[index], levels[index + 1]
                if exact:
                    latents[SOURCE] = path[index]
                answers = both(latents, level, index, steps)
                made = model.clean(latents[TARGET], answers[TARGET], level)
                latents = {
                    role: step(model, latents[role], answers[role], level, following) for role in (SOURCE, TARGET)
                }
                if maps is not None and index >= _BLIND * steps:
                    mask = maps.read(both.control.maps, source) > threshold
                    kept = path[index + 1] if exact else latents[SOURCE]
                    latents[TARGET] = torch.where(mask, latents[TARGET], kept)
                if progress is not None:
                    progress(steps + index + 1, 2 * steps, made)
        return self._output(work, latents[TARGET], (), **({} if mask is None else {"mask": mask}))

    def _inverted(
        self, source: torch.Tensor, branches: Branches, levels: tuple[float, ...], progress: Progress | None
    ) -> list[torch.Tensor]:
        """Latents at every level, the noisiest first, so that denoising leads back from one to the next."""
        steps, path = len(levels) - 1, [source]
        for done, index in enumerate(reversed(range(steps))):
            # The denoiser is asked at the level it leads to: clean latents are no level that it knows.
            level, below = levels[index], levels[index + 1]
            answer = branches({SOURCE: path[-1]}, level, index, steps)[SOURCE]
            if self.model.flow:
                path.append(path[-1] + (level - below) * answer)
            else:
                path.append(self._up(path[-1], answer, below, level))
            if progress is not None:
                progress(done + 1, 2 * steps, path[0])
        return path[::-1]

    def _up(self, latents: torch.Tensor, answer: torch.Tensor, below: float, level: float) -> torch.Tensor:
        """DDIM upwards with the answer for ``level``: the latents at that level whose step down ends here."""
        zero = torch.zeros_like(latents)
        # Clean latents and noise are linear in latents and answer; solving step(x, answer) = latents for x.
        offset = step(self.model, zero, answer, level, below)
        one = torch.ones((1,) * latents.ndim, dtype=latents.dtype, device=latents.device)
        factor = step(self.model, one, torch.zeros_like(one), level, below)
        return (latents - offset) / factor


def _rules(alignment: Alignment, steps: int, keep: float, maps: float) -> list[Rule]:
    """Self-attention of the source in the target for the first steps, and its maps of shared words."""
    found: list[Rule] = []
    first, second = round(keep * steps), round(maps * steps)
    if first:
        found.append(Take("qk", SOURCE, TARGET, where=Where(steps=f"0:{first}")))
    if second:
        where = Where(steps=f"0:{second}", conditional=True)
        found.append(Refine(of=SOURCE, into=TARGET, alignment=alignment, where=where))
    return found
