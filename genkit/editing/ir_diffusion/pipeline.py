"""IR-Diffusion as a pipeline: several subjects that stay themselves over several pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from genkit.control import Control, Rule
from genkit.editing.ir_diffusion.cast import Box, Cast, Place
from genkit.editing.ir_diffusion.rules import Strengths, rules_of_scene
from genkit.editing.ir_diffusion.subjects import Finder, disjoint_rows
from genkit.editing.shared.blend import map_grid
from genkit.editing.shared.branches import Branch, Branches
from genkit.editing.shared.pipeline import EditPipeline, Progress, share
from genkit.editing.shared.walk import step
from genkit.errors import UnsupportedError


@dataclass
class ConsistentOutput:
    """What was made.

    Args:
        frames: uint8 (scenes, H, W, 3).
        rehearsal: the same scenes without control, uint8 (scenes, H, W, 3); None where masks were given.
        portraits: the subjects' own pictures, uint8 (subjects, H, W, 3).
        masks: (number of the scene or None for a portrait, number of the subject) -> bool (h, w) on the latents' grid.
        told: what the user should know, one line each.
    """

    frames: np.ndarray
    rehearsal: np.ndarray | None
    portraits: np.ndarray
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def images(self) -> list[Any]:
        """The scenes as PIL pictures."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.frames]


class IRDiffusionPipeline(EditPipeline):
    """Consistent subjects by isolation and reposition attention, without training.

    Every subject has a portrait, a row of the same batch. A rehearsal without control tells where the subjects are.
    In the run itself a scene's tokens of one subject do not read those of another, they read the portrait's subject
    brought to their place, and they follow the portrait's prompt.

    Source: Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention.
    """

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        if self.model.video:
            raise UnsupportedError(f"{type(pipe).__name__} makes videos; consistent subjects take models of pictures")

    @torch.no_grad()
    def __call__(
        self,
        subjects: Sequence[str],
        scenes: Sequence[str],
        *,
        keywords: Sequence[str | None] = (),
        boxes: Mapping[tuple[int | None, int], Box] | None = None,
        masks: Mapping[tuple[int | None, int], torch.Tensor] | None = None,
        height: int = 512,
        width: int = 512,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.0,
        isolation: bool = True,
        reposition: bool = True,
        first_layer: float = 36 / 70,
        start: float | None = None,
        dropout: float = 0.5,
        bonus: float = 0.0,
        text_share: float = 0.9,
        eta: float | None = None,
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        progress: Progress | None = None,
    ) -> ConsistentOutput:
        """Make one picture per scene.

        Args:
            subjects: prompt of every subject's portrait, such as "a red circle".
            scenes: prompts of the pictures. Of several subjects a scene may leave some out, which is told.
            keywords: of every subject the words by which it is looked for in the prompts; None or left out = its
                prompt without an article.
            boxes: (number of a scene or None for all, number of a subject) -> its box in the scene; what no box tells
                is read from the rehearsal.
            masks: of an earlier run's output with the same seed, size, subjects, scenes and boxes, in place of a
                rehearsal: other settings are tried at half the cost. Boxes come before masks.
            height, width: of the pictures, multiples of what the family says.
            negative_prompt: what guidance leads away from.
            num_inference_steps: of the rehearsal and of the run.
            guidance_scale: of classifier-free guidance, 1 = none; the input of models distilled with one.
            isolation: keep subjects apart.
            reposition: read the portraits.
            first_layer: share of the self- (or joint) attention layers, in the order of execution, before which the
                portraits are not read; published 36 of SDXL's 70.
            start: share of the steps before which nothing acts: places are decided in the first steps, and what is
                controlled there is drawn elsewhere than in the rehearsal, whose masks then miss it. None = 0.35, and 0
                for subjects in a box, which the rehearsal does not bring there, and of runs of one step; published 0.
            dropout: share of a subject's tokens that do not read the portrait, drawn anew in every step: more leaves
                the scene more of its own pose.
            bonus: added to the attention scores of the portrait; above 0 follows it more.
            text_share: how far a subject's tokens follow the portrait's prompt instead of the scene's, 0..1. Of
                cross-attention models.
            eta: share of fresh noise in every step; None = the scheduler's: 1 where it samples stochastically, else 0.
            generator: of all noise. All rows share it, so that the rehearsal's places hold.
            max_sequence_length: text tokens, for encoders that leave it open.
            progress: called after every step of both passes with (done, in all, clean latents of the first scene).

        Cost: two runs of ``subjects + scenes`` rows, one with ``masks``; twice that with guidance.

        Raises:
            UsageError: no subject or scene, a share outside 0..1, a box outside the canvas, or a scene that names a
                subject in other words and has no box for it.
        """
        if start is None and num_inference_steps == 1:
            start = 0.0
        strengths = Strengths(
            isolation, reposition, share(first_layer, "first_layer"),
            None if start is None else share(start, "start"), share(dropout, "dropout"), bonus,
            share(text_share, "text_share"),
        )  # fmt: skip
        cast = Cast.of(subjects, scenes, keywords, dict(boxes or {}))
        model = self.model
        like = model.encode(np.zeros((height, width, 3), np.uint8))
        levels = model.levels(num_inference_steps, like)
        steps = len(levels) - 1
        total = steps if masks is not None else 2 * steps
        if eta is None:
            eta = 1.0 if self.pipe.scheduler.config.get("stochastic_sampling") else 0.0
        rows = {
            role: Branch(prompt, negative_prompt, guidance_scale)
            for role, prompt in {**cast.portraits, **cast.scenes}.items()
        }
        if generator is None:
            generator = torch.Generator().manual_seed(torch.seed() % 2**63)
        state = generator.get_state()

        def make(rules: Sequence[Rule], after: Callable[[Control], None] | None, done: int) -> dict[str, torch.Tensor]:
            generator.set_state(state)
            noise = model.draw(like, generator)
            latents = dict.fromkeys(rows, noise)
            with Control(self.pipe, rules) if rules else _Nothing() as control:
                branches = Branches(model, rows, control=control, together=True, slots=max_sequence_length)
                for index in range(steps):
                    level, following = levels[index], levels[index + 1]
                    answers = branches(latents, level, index, steps)
                    if after is not None and control is not None:
                        after(control)
                    fresh = model.draw(like, generator) if eta and following > 0 else None
                    clean = model.clean(latents[cast.first], answers[cast.first], level)
                    latents = {
                        role: step(model, noisy, answers[role], level, following, eta=eta, fresh=fresh)
                        for role, noisy in latents.items()
                    }
                    if progress is not None:
                        progress(done + index + 1, total, clean)
            return latents

        size = (int(like.shape[-2]), int(like.shape[-1]))
        rehearsed: dict[str, torch.Tensor] = {}
        if masks is None:
            finder = Finder.of(self.pipe, cast.wanted(), map_grid(model, like), max_sequence_length)
            rehearsed = make(finder.rules(), finder.take, 0)
            found = finder.masks(size)
        else:
            found = cast.named(masks, size)
        found = disjoint_rows({**found, **cast.boxed(size)}, [*cast.portraits, *cast.scenes])
        layers = Counter(site.role for site in model.family.find_sites(model.network(1.0)))
        seed = generator.initial_seed() % 2**31
        rules = [
            rule
            for scene in cast.scenes
            for rule in self._rules(scene, cast, found, strengths, layers, seed, max_sequence_length)
        ]
        made = make(rules, None, total - steps)
        numbers = {role: number for number, role in enumerate(cast.scenes)}
        output = ConsistentOutput(
            self._decoded(made, cast.scenes), self._decoded(rehearsed, cast.scenes) if rehearsed else None,
            self._decoded(made, cast.portraits),
            {(numbers.get(role), number): mask for (role, number), mask in found.items()}, cast.told(),
        )  # fmt: skip
        self.pipe.maybe_free_model_hooks()
        return output

    def _rules(
        self, scene: str, cast: Cast, masks: Mapping[Place, torch.Tensor], strengths: Strengths,
        layers: Mapping[str, int], seed: int, slots: int | None,
    ) -> list[Rule]:  # fmt: skip
        roles = list(cast.portraits)
        references = {role: masks[role, number] for number, role in enumerate(roles)}
        places = {role: masks[scene, number] for number, role in enumerate(roles) if (scene, number) in masks}
        words = {role: cast.words(self.pipe, scene, number, slots) for number, role in enumerate(roles)}
        boxed = [role for number, role in enumerate(roles) if (scene, number) in cast.boxes]
        return rules_of_scene(scene, references, places, words, strengths, layers, seed, boxed)

    def _decoded(self, latents: Mapping[str, torch.Tensor], roles: Mapping[str, str]) -> np.ndarray:
        return np.concatenate([self.model.decode(latents[role]) for role in roles])


class _Nothing:
    """No control."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None
