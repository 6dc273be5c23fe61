"""A storyboard checked against a model that has no weights yet: lengths, tiles, words and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from genkit.editing.ditctrl.pipeline import plan_of
from genkit.editing.ditctrl.plan import Plan
from genkit.editing.ditctrl.sharing import Sharing, rules_of, shared_layers
from genkit.errors import UsageError, counted
from genkit.pipelines.kinds import size_rule
from genkit.pipelines.tasks.storyboard.shots import Shot, checked, read_storyboard, split
from genkit.pipelines.text import shares

if TYPE_CHECKING:
    from genkit.control.spans import TextPart
    from genkit.pipelines.model import Model
    from genkit.pipelines.resolve import Draft, Request


@dataclass(frozen=True)
class Board:
    """A storyboard that fits a model.

    Args:
        prompts: of the shots, as the model reads them.
        frames: of each; None = as the plan comes to.
        tile_frames: that the model makes at once.
        plan: the tiles.
    """

    prompts: tuple[str, ...]
    frames: tuple[int, ...] | None
    tile_frames: int
    plan: Plan

    @classmethod
    def of(cls, draft: Draft, shots: Sequence[Shot], total: int | None) -> Board:
        """Lay the tiles out.

        Args:
            draft: with the model and the settings. shots: of the storyboard.
            total: frames of the clip that the user asked for; None = as the shots say.

        Raises:
            UsageError: lengths that do not fit the model.
        """
        settings, model = draft.settings, draft.model
        frames = None if shots[0].frames is None else [int(shot.frames or 0) for shot in shots]
        if total is not None and frames is None:
            frames = split(total, len(shots))
        elif total is not None and frames is not None and total != sum(frames):
            raise UsageError(
                f"--num-frames: got {total}, the shots have {counted(sum(frames), 'frame')} together; leave one out"
            )
        tile = settings.tile_frames or usual_frames(model)
        rule = size_rule(model.class_name, model.config)
        assert rule is not None, "every family that takes storyboards has a rule of sizes"
        kind = model.part_class("vae")
        group = 1
        if kind is not None:
            group = int(getattr(model.without_values("vae", kind), "num_latent_frames_batch_size", 1))
        plan = plan_of(
            len(shots), frames, tile, settings.tile_overlap, settings.transitions, 0, rule.frames_multiple, group
        )
        return cls(tuple(shot.prompt for shot in shots), None if frames is None else tuple(frames), tile, plan)

    def settings(self) -> dict[str, Any]:
        """What the settings of the run say of it."""
        lengths = self.frames or [None] * len(self.prompts)
        texts = tuple(Shot(prompt, own).text for prompt, own in zip(self.prompts, lengths, strict=True))
        return {"num_frames": self.plan.frames, "shots": texts}

    def told(self) -> list[str]:
        """What the user should know, one line each."""
        tiles = len(self.plan.tiles)
        return [
            f"{counted(len(self.prompts), 'shot')} in {counted(tiles, 'tile')} of "
            f"{counted(self.tile_frames, 'frame')}; shot {self.plan.words()}"
        ]

    def check_layers(self, request: Request) -> None:
        """Refuse layers that the model does not have, or that a method of attention works on; UsageError."""
        from genkit.control.control import parts_of

        settings, outline = request.settings, request.model.outline
        layers = shared_layers(next(iter(outline.components.values())))
        sharing = Sharing(settings.sharing, settings.sharing_layers, shares(settings.sharing_steps, "--sharing-steps"))
        rules = rules_of([("source", "target")], sharing, layers, None)
        if rules:
            parts_of(outline, rules)
        if request.attention is not None:
            who = "the sharing of the shots"
            request.attention.check_beside(request.model, rules, who, ", or take --sharing none")


def usual_frames(model: Model) -> int:
    """Frames that a model makes when nobody says how many."""
    usual = model.sidecar.defaults.get("num_frames") or model.accepted["num_frames"].default
    return int(usual or model.config("transformer")["sample_frames"])


def shots_of(settings: Any) -> tuple[Shot, ...]:
    """The shots that settings ask for; UsageError where they make no storyboard."""
    if settings.storyboard is not None:
        return checked(read_storyboard(settings.storyboard))
    return checked([Shot.of(text) for text in settings.shots])


def read_shots(board: Board, request: Request) -> tuple[Board, list[str]]:
    """The board with its prompts as the model reads them, and what the user should know of them.

    Raises:
        UsageError: a prompt that is too long, weighs words, or lacks the words that stay; names the shot.
    """
    from genkit.control.spans import find_words, text_parts, tokens_at
    from genkit.pipelines.prompts import read_prompts

    settings, limit = request.settings, request.model.sidecar.limits.get("max_prompt_tokens")
    prompts, told = [], []
    parts: tuple[TextPart, ...] = ()
    if settings.sharing_words:
        parts = text_parts(
            SimpleNamespace(**request.tokenizers), settings.max_sequence_length, request.model.class_name
        )
    for number, prompt in enumerate(board.prompts):
        name = f"shot {number + 1}"
        asked = settings.replace(prompt=prompt, negative_prompt=None)
        read = read_prompts(
            request.tokenizers, asked, limit, name=name, taught=request.taught,
            expected=request.model.sidecar.prompts_name,
        )  # fmt: skip
        if read.words:
            raise UsageError(f"{name}: weights such as (red:1.3) are for a single prompt; write the words plainly")
        for word in settings.sharing_words:
            try:
                tokens_at(parts, read.prompt or "", find_words(read.prompt or "", word))
            except UsageError as error:
                raise UsageError(f"--sharing-words, {name}: {error}") from error
        prompts.append(read.prompt or "")
        told += [line for line in read.told if line not in told and number > 0]
    return replace(board, prompts=tuple(prompts)), told
