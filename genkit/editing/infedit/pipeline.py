"""InfEdit as a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genkit.control import Rule
from genkit.editing.infedit.control import Plan, refined_steps, unified_control
from genkit.editing.infedit.gone import USUAL, Gone
from genkit.editing.infedit.kept import Kept
from genkit.editing.infedit.sampler import LAYOUT, SOURCE, TARGET, Latents, virtual_inversion
from genkit.editing.shared.blend import WordMaps, map_grid, rules_of
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditOutput, EditPipeline, Input, Progress, first_step, share
from genkit.editing.shared.prompts import aligned, positions
from genkit.errors import UsageError, explain

#: Values of ``new_words``.
PAIRED, FREE = "paired", "free"
#: Below this signal no map is trusted: the threshold is this by the signal.
_FAINT = 0.15


class InfEditPipeline(EditPipeline):
    """Edit without inversion: denoise from noise while the source explains itself exactly, and let attention keep what
    both prompts share. On flow models it is the like for their paths.

    Source: Inversion-Free Image Editing with Natural Language (Xu et al., 2023).
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Input,
        prompt: str,
        source_prompt: str,
        *,
        negative_prompt: str = "",
        source_negative_prompt: str = "",
        num_inference_steps: int = 15,
        guidance_scale: float = 2.0,
        source_guidance_scale: float = 1.0,
        keep: float = 0.7,
        keep_maps: float | None = None,
        new_words: str = PAIRED,
        settle: float = 0.0,
        self_inject_target: bool = True,
        words: Sequence[str] = (),
        keep_words: Sequence[str] = (),
        source_words: Sequence[str] = (),
        threshold: float = 0.6,
        keep_threshold: float | None = None,
        source_threshold: float = USUAL,
        strength: float = 1.0,
        eta: float = 1.0,
        spacing: str = "lcm",
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
            source_prompt: what the input shows.
            negative_prompt, source_negative_prompt: what guidance leads away from.
            num_inference_steps: 8 for easy edits, 15 usual, 25 for styles and removal, 50 for hard ones.
            guidance_scale, source_guidance_scale: of both prompts, 1 = none.
            keep: share of the steps in which self-attention follows the source, 0..1. The authors advise 1 for colours,
                0.9 for materials, 0.7 for other objects and styles, 0.3 for shapes and poses, 0 to add, remove or
                change the background.
            keep_maps: share of the steps in which words that both prompts have act where they do in the source; None =
                as ``keep``.
            new_words: "paired" = in every gap between shared words the new word that is most like one of the source's
                takes its maps too, as in the published code; "free" = new words act where the model likes. A background
                whose new colour is bound to the maps of the old one is drawn in neither of the two.
            settle: share of the steps, from the first on, in which the large colours settle, for another background:
                maps are free yet. Guidance counts in them alone: without it source and target draw the same things in
                the same places, and their difference is the background. Words limit nothing for twice as long. 0 =
                all of it as published.
            self_inject_target: whether the target's self-attention follows too.
            words: words of the prompt; only where they act the picture changes. None given: everywhere.
            keep_words: words of both prompts; where they act in the picture it stays, from the first step (with
                ``settle`` later) to the result, and elsewhere they do not act. That is looked up before the run, see
                :class:`genkit.editing.infedit.kept.Kept`. Of words that are in ``words`` too the layout is kept, in the
                last blend.
            source_words: words of the source prompt, for what goes; only where they act in the picture and the two
                prompts disagree it changes, from the first step (with ``settle`` later) to the result, and words of
                what stays do not act there. That is looked up before the run, see
                :class:`genkit.editing.infedit.gone.Gone`.
                ``keep_words`` then are such words for sure and nothing else.
            threshold: of the maps of ``words``, as a share of their largest value.
            keep_threshold: of those of ``keep_words``, from 0 where they act least to 1 where they act most; None = 0.6
                with ``keep``, which holds outlines, and 0.3 without, where the mask alone does.
            source_threshold: of the map of ``source_words``, from 0 to 1 where it is highest.
            strength: share of the steps that are run; below 1 the run begins with the noised input.
            eta: share of fresh noise; 1 is the method.
            spacing: timesteps, "lcm" or "own" (the scheduler's).
            rules: further rules of a control; the rows are "source" and "target". Weights of words:
                :func:`genkit.control.words.word_rules`.
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            multiple: what height and width must be multiples of; None = the family's rule.
            progress: called after every step with (done, in all, clean latents as they stand).

        Returns:
            The edit; ``details["mask"]`` is where the words acted, bool (1, 1, ..., h, w), where words are given, and
            ``details["kept"]`` where ``keep_words`` do, or ``details["gone"]`` where ``source_words`` do.

        Cost: per step two rows, three with guidance; four with attention control, and six in the late steps where
        ``words`` limit the change; one more in all for ``keep_words``, five for ``source_words``.

        Raises:
            UsageError: a share outside 0..1, a word that the prompts do not have, an input that is no picture.
        """
        if new_words not in (PAIRED, FREE):
            raise UsageError(explain("new_words", new_words, (PAIRED, FREE)))
        model = self.model
        keep_maps = keep if keep_maps is None else keep_maps
        share(keep, "keep"), share(keep_maps, "keep_maps"), share(eta, "eta"), share(settle, "settle")
        work, source = self._work(image, multiple)
        levels = model.levels(num_inference_steps, source, spacing)
        steps = len(levels) - 1
        settled = refined_steps(settle, steps)
        shared = tuple(word for word in keep_words if word in words)
        stay = tuple(word for word in keep_words if word not in words)
        chosen = tuple(words), shared
        controlled = bool(keep or keep_maps or words)
        branches = {
            SOURCE: Branch(source_prompt, source_negative_prompt, source_guidance_scale),
            TARGET: Branch(prompt, negative_prompt, guidance_scale),
        }
        if controlled:
            branches[LAYOUT] = branches[SOURCE]
        rows = Branches(model, branches, together=controlled, slots=max_sequence_length)
        blend: _Blend | None = None
        begins = {SOURCE: 0, TARGET: 0}
        if controlled:
            states = (rows.states(SOURCE), rows.states(TARGET))
            pairs = aligned(self.pipe, source_prompt, prompt, states, rows.slots, new_words == PAIRED)
            plan = unified_control(
                pairs,
                steps,
                cross=keep_maps,
                self_=keep,
                inject=self_inject_target,
                blends=any(chosen),
                settled=settled,
            )
            grid = map_grid(model, source)
            first = max(1, 2 * settled)
            blend = _Blend.of(self.pipe, rows, plan, pairs, grid, prompt, chosen, threshold, first)
            rules = [*plan.rules, *rules, *blend.rules]
            begins[LAYOUT] = plan.begins
        kept: Kept | Gone | None = None
        prompts = source_prompt, prompt
        if source_words:
            kept = Gone.of(
                model, self.pipe, source, prompts, tuple(source_words), stay, source_threshold, max_sequence_length
            )
            rules = [*rules, *kept.rules]
        elif stay:
            limit = Kept.usual(keep) if keep_threshold is None else keep_threshold
            refined = refined_steps(keep_maps, steps)
            free = f"{refined}:{steps}" if refined < steps else None
            kept = Kept.of(model, self.pipe, source, prompts, stay, limit, max_sequence_length, free)
            rules = [*rules, *kept.rules]

        def predict(noisy: Mapping[str, torch.Tensor], level: float, step: int, count: int) -> Latents:
            rows.guided = not settled or step < settled
            return rows(noisy, level, step, count)

        def blended(clean: Latents, step: int, count: int, level: float) -> Latents:
            if blend is not None and blend.rules:
                clean = blend(clean, step, count, level)
            if kept is not None and step >= 2 * settled:
                clean = {**clean, TARGET: kept.blended(clean[TARGET])}
            return clean

        with rows.under(rules):
            made = virtual_inversion(
                model, source, predict, begins, levels, generator=generator, eta=eta,
                start=first_step(steps, strength) if strength < 1 else 0, progress=progress, blend=blended,
            )  # fmt: skip
        details = {} if blend is None or blend.mask is None else {"mask": blend.mask}
        if kept is not None:
            made, details["gone" if source_words else "kept"] = kept.blended(made), kept.mask
        return self._output(work, made, (), **details)


class _Blend:
    """Local blending of the branches' clean latents after a step.

    Args:
        rows: whose control reads the maps.
        change: where the target may differ from the layout; None = everywhere.
        both: where words act of which the layout is kept, in the last blend.
        threshold: of both maps.
        first: step after which blending begins.
    """

    def __init__(self, rows: Branches, change: WordMaps | None, both: WordMaps | None, threshold: float, first: int):
        self.rows, self.change, self.both = rows, change, both
        self.threshold, self.first = threshold, first
        self.rules = rules_of((change, both))
        self.mask: torch.Tensor | None = None

    @classmethod
    def of(
        cls, pipe: Any, rows: Branches, plan: Plan, alignment: Any, grid: tuple[int, int] | None, prompt: str,
        words: tuple[tuple[str, ...], tuple[str, ...]], threshold: float, first: int,
    ) -> _Blend:  # fmt: skip
        """The blend of words given as texts: those to change, and those of them whose layout is kept."""

        def maps(chosen: tuple[str, ...], name: str) -> WordMaps | None:
            if not chosen:
                return None
            return WordMaps(positions(pipe, prompt, chosen, rows.slots), alignment, plan.reads, TARGET, name, grid)

        return cls(rows, maps(words[0], "change"), maps(words[1], "both"), threshold, first)

    def __call__(self, clean: Latents, step: int, steps: int, level: float) -> Latents:
        """Blend after every step but the first ones."""
        if step < self.first:
            return clean
        maps, target = self.rows.control.maps, clean[TARGET]
        layout = clean.get(LAYOUT, clean[SOURCE])
        signal, _ = self.rows.model.parts(level)
        if self.change is not None:
            faint = _FAINT / max(signal, 1e-6)
            self.mask = self.change.read(maps, target) > max(self.threshold, faint)
            target = torch.where(self.mask, target, layout)
        if self.both is not None and step == steps - 2:
            target = torch.where(self.both.read(maps, target) > self.threshold, clean[LAYOUT], target)
        return {**clean, TARGET: target}
