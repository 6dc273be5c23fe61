"""How well an image model draws the toy world's still pictures, by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genkit.errors import UnsupportedError
from genkit.evaluation.toy import Accuracy, accuracy_of, run_batches
from genkit.models.registry import locate
from genkit.models.sidecar import read_sidecar
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_judge import judge_picture, score_picture
from genkit.world.picture_scene import Picture, draw_picture

ATTRIBUTES = ("background", "count", "colour", "shape", "texture", "size", "place", "all")


@dataclass(frozen=True)
class PictureRequest:
    """Size and sampling of evaluation pictures.

    Args:
        height, width: in pixels.
        steps: denoising steps.
        batch: prompts per call.
        call: further arguments of the pipeline's call.
    """

    height: int = 128
    width: int = 128
    steps: int = 20
    batch: int = 8
    call: dict = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: str, height: int, width: int, steps: int, batch: int = 8) -> PictureRequest:
        """A request with the guidance, text length and further arguments that the model's ``genkit.json`` names."""
        sidecar = read_sidecar(locate(model).path)
        names = ("guidance_scale", "max_sequence_length", "negative_prompt")
        given = {name: sidecar.defaults[name] for name in names if name in sidecar.defaults}
        return cls(height, width, steps, batch, {**given, **sidecar.call})


def draw_picture_prompts(
    split: str, count: int, seed: int = 0, actors: int | None = None, side: int = 128
) -> list[tuple[Picture, str]]:
    """Pictures of one split with their canonical captions, the same for the same seed.

    Args:
        split: ``train``, ``held_out_tuple`` or ``held_out_pair``.
        count: how many.
        seed: of the draw.
        actors: objects per picture; None for the world's own mix.
        side: canvas on which the pictures have room.
    """
    rng = np.random.default_rng(seed)
    pictures = [draw_picture(rng, side, side, split, actors)[0] for _ in range(count)]
    return [(picture, picture_caption(picture)) for picture in pictures]


def generate_pictures(
    pipeline: Any,
    captions: Sequence[str],
    request: PictureRequest,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Run a text-to-image pipeline over captions; picture ``i`` starts from the noise of seed ``seed + i``.

    Returns:
        uint8 pictures (B, H, W, 3) and the wall seconds spent in the pipeline.
    """
    call = {"height": request.height, "width": request.width, "num_inference_steps": request.steps, **request.call}
    return run_batches(pipeline, captions, call, lambda output: output.images, request.batch, seed, progress)


def judge_pictures(pictures: Sequence[Picture], images: np.ndarray) -> tuple[Accuracy, list[dict[str, bool]]]:
    """Accuracy per attribute and the single results."""
    results = [score_picture(picture, judge_picture(image)) for picture, image in zip(pictures, images, strict=True)]
    return accuracy_of(results, ATTRIBUTES), results


def use_lcm(pipeline: Any) -> None:
    """Give a pipeline of the Stable Diffusion kind the sampler of latent consistency models, with its own noise table.

    Raises:
        UnsupportedError: its scheduler is of another kind, such as flow matching.
    """
    from diffusers import LCMScheduler

    if "beta_schedule" not in pipeline.scheduler.config:
        raise UnsupportedError(
            f"LCM sampling needs a table of betas, {type(pipeline.scheduler).__name__} has none; use its own sampler"
        )
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
