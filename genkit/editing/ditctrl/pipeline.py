"""DiTCtrl as a pipeline: several prompts in order, one clip."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.editing.ditctrl.plan import OVERLAP, TRANSITIONS, Plan
from genkit.editing.ditctrl.sharing import KV, MASK, STEPS, THRESHOLD, Sharing
from genkit.editing.ditctrl.tiles import Texts, TileCalls
from genkit.editing.shared.pipeline import EditPipeline, Progress, config_of, size_rule
from genkit.editing.shared.prompts import positions
from genkit.editing.shared.solver import Solver
from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.families.lookup import able, can, diffusers_class

#: Name of the task in the records of families.
TASK = "storyboard"


@dataclass
class StoryboardOutput:
    """What was made.

    Args:
        frames: uint8 (F, H, W, 3), the whole clip.
        latents: (1, C, T, h, w), what was decoded.
        plan: its tiles; ``plan.spans`` are the shots' frames.
    """

    frames: np.ndarray
    latents: torch.Tensor
    plan: Plan

    def shot(self, number: int) -> np.ndarray:
        """The frames of one shot."""
        first, end = self.plan.spans[number]
        return self.frames[first:end]


class DiTCtrlPipeline(EditPipeline):
    """One clip from several prompts, longer than the model makes at once, without training.

    Tiles of the model's own length overlap and start from one noise; their answers are blended in every step, and in
    some layers and steps a tile's queries read the keys and values of the tile before it, so that what is seen stays.
    Of joint models (CogVideoX, HunyuanVideo) keys and values of the text are shared too, of models that read the text
    by cross-attention (Wan) those of self-attention alone.

    Source: DiTCtrl: Exploring Attention Control in Multi-Modal Diffusion Transformer for Tuning-Free Multi-Prompt
    Longer Video Generation (Cai et al., 2024).

    Example:
        >>> import genkit
        >>> pipe = genkit.DiTCtrlPipeline.from_pipe(genkit.load("toy-video"))
        >>> prompts = ["a red circle moves right on a blue background", "a red circle moves down on a blue background"]
        >>> made = pipe(prompts, tile_frames=5, overlap=1, height=64, width=64, num_inference_steps=1)
        >>> made.frames.shape, made.plan.spans
        ((9, 64, 64, 3), ((0, 5), (5, 9)))
    """

    def __init__(self, pipe: Any):
        refuse(diffusers_class(pipe) or type(pipe).__name__, config_of(pipe)("transformer"))
        super().__init__(pipe)

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        frames: Sequence[int] | None = None,
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int,
        width: int,
        tile_frames: int | None = None,
        overlap: int | None = None,
        transitions: int = TRANSITIONS,
        longer_middle: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        sharing: str = KV,
        words: Sequence[str] = (),
        threshold: float = THRESHOLD,
        sharing_layers: str | None = None,
        sharing_steps: tuple[float, float] = STEPS,
        pairs: bool = True,
        generator: torch.Generator | None = None,
        max_sequence_length: int | None = None,
        progress: Progress | None = None,
    ) -> StoryboardOutput:
        """Make a clip.

        Args:
            prompts: two or more, in order; the same one again makes its part longer.
            frames: of every shot; their sum is 1 plus a multiple of the frames behind a latent one. None = as many as
                the publication's plan comes to.
            negative_prompt: what guidance leads away from, for all shots or one for each.
            height, width: pixels.
            tile_frames: frames that the model makes at once; None = the default of the pipeline's own call.
            overlap: latent frames that neighbouring tiles share; None = 6 / 13 of a tile, as published.
            transitions: tiles between two prompts, whose text is mixed of both.
            longer_middle: further tiles of the prompts between the first and the last; not with ``frames``.
            num_inference_steps: by the pipeline's own scheduler.
            guidance_scale: of classifier-free guidance, 1 = none; the input of models that take one.
            sharing: "kv", "mask" (what the words name reads what they name in the tile before, the rest the rest), or
                "none".
            words: for "mask": what stays, in words that every prompt has.
            threshold: of the words' maps, normalised within a frame.
            sharing_layers: as ``genkit.Schedule`` takes them; None = the last sixth.
            sharing_steps: half-open share of the steps.
            pairs: as published: every tile is asked with the one before it, and again with the one behind it. False
                asks all tiles once, in one call that needs the memory for them.
            generator: of all noise.
            max_sequence_length: text tokens, for encoders that leave it open.
            progress: called after every step with (done, in all, clean latents as they stand).

        Cost: per step ``plan.evaluations(pairs)`` calls for a tile, twice with guidance: 2 (tiles - 1), or tiles.

        Raises:
            UsageError: lengths that do not fit, words that a prompt does not have, or settings that are none.
        """
        prompts = _prompts(prompts)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if len(negatives) != len(prompts):
            raise UsageError(explain("negative_prompt", f"{len(negatives)} of them", f"one, or {len(prompts)}"))
        shared = Sharing(sharing, sharing_layers, (float(sharing_steps[0]), float(sharing_steps[1])), threshold)
        plan = plan_of(
            len(prompts), frames, self._tile(tile_frames), overlap, transitions, longer_middle,
            size_rule(self.pipe)[1], decoded_by(self.pipe),
        )  # fmt: skip
        places = self._places(prompts, tuple(words), sharing, max_sequence_length)
        model = self.model
        like = model.encode(np.zeros((1, height, width, 3), np.uint8))
        noise = model.draw(like.expand(-1, -1, plan.total, -1, -1), generator)
        solver = Solver(model, num_inference_steps, noise[:, :, : plan.length], generator)
        texts = Texts.of(model, plan, prompts, negatives, max_sequence_length, places)
        calls = TileCalls(model, plan, texts, guidance_scale, shared, pairs)
        latents, steps = solver.begin(noise), len(solver)
        with calls.shared():
            for index, level in enumerate(solver.levels):
                seen = solver.seen(latents, index)
                answer = calls(seen, level, index, steps)
                if progress is not None:
                    progress(index + 1, steps, model.clean(seen, answer, level))
                latents = solver.step(index, answer, latents)
        frames_made = model.decode(latents)
        self.pipe.maybe_free_model_hooks()
        return StoryboardOutput(frames_made, latents, plan)

    def _tile(self, frames: int | None) -> int:
        """Frames of a tile."""
        if frames is not None:
            return frames
        usual = inspect.signature(type(self.pipe).__call__).parameters["num_frames"].default
        if usual is None:  # CogVideoX: as many as its transformer was trained on
            usual = self.pipe.transformer.config.sample_frames
        return int(usual)

    def _places(
        self, prompts: Sequence[str], words: tuple[str, ...], sharing: str, slots: int | None
    ) -> list[tuple[int, ...]]:
        """Positions of the words in every prompt; none without masks."""
        if sharing != MASK:
            if words:
                raise UsageError(f'words are for sharing="mask"; got sharing={sharing!r}')
            return []
        if not words:
            raise UsageError('sharing="mask" needs words: what stays the same, such as words=("red circle",)')
        found = []
        for number, prompt in enumerate(prompts):
            try:
                found.append(positions(self.pipe, prompt, words, slots))
            except UsageError as error:
                raise UsageError(f"shot {number + 1}: {error}") from error
        return found


def plan_of(
    shots: int, frames: Sequence[int] | None, tile_frames: int, overlap: int | None, transitions: int,
    longer_middle: int, each: int, decoded: int = 1,
) -> Plan:  # fmt: skip
    """The tiles of a clip; see :meth:`DiTCtrlPipeline.__call__`.

    Args:
        each: frames behind a latent frame.
        decoded: the clip's latent frames less one are a multiple of it, which the decoder asks for.

    Raises:
        UsageError: lengths that do not fit.
    """
    if isinstance(tile_frames, bool) or tile_frames < 1 or (tile_frames - 1) % each:
        raise UsageError(explain("tile_frames", tile_frames, f"1 plus a multiple of {each}"))
    length = 1 + (tile_frames - 1) // each
    overlap = round(OVERLAP * length) if overlap is None else overlap
    if frames is None:
        plan = Plan.published(shots, length, overlap, transitions, longer_middle, each)
    elif longer_middle:
        raise UsageError("longer_middle and frames exclude each other: frames say how long every shot is")
    elif len(frames) != shots:
        raise UsageError(
            explain("frames", counted(len(frames), "number"), f"one for each of {counted(shots, 'prompt')}")
        )
    else:
        plan = Plan.timed(frames, length, overlap, transitions, each)
    if (plan.total - 1) % decoded:
        step, total = each * decoded, plan.frames
        low = total - (total - 1) % step
        raise UsageError(
            f"the clip has {counted(total, 'frame')}; its decoder takes {counted(decoded, 'latent frame')} at "
            f"a time: give shots of {low} or "
            f"{counted(low + step, 'frame')} together"
        )
    return plan


def decoded_by(pipe: Any) -> int:
    """What latent frames less one must be a multiple of for the decoder to give every frame."""
    return int(getattr(pipe.vae, "num_latent_frames_batch_size", 1))


def refuse(class_name: str, transformer: dict) -> None:
    """Raise UnsupportedError for a pipeline class, or a checkpoint of it, that takes no storyboard."""
    if not can(TASK, class_name):
        raise UnsupportedError(
            f"storyboards: {class_name} is not known to take several prompts in a row: tiles are made by "
            f"{', '.join(able(TASK))}, chained shots by models of videos that take a first frame; for "
            "an output a prompt, give --prompt-file"
        )
    if (transformer.get("patch_size_t") or 1) > 1:
        raise UnsupportedError(
            f"storyboards: a token of this {class_name} holds "
            f"{counted(transformer['patch_size_t'], 'latent frame')}, which tiles "
            "do not fit; take a model with one"
        )


def _prompts(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError(explain("prompts", prompts, "a list of texts, one for each shot"))
    return list(prompts)
