"""What teacher and student are asked for: the lines of a file, or captions of the toy world without end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.errors import UsageError, explain
from genkit.families.training.base import Tensors, Training
from genkit.pipelines.kinds import IMAGE, VIDEO, Kind
from genkit.reading import read_text, user_path
from genkit.reading.files import place
from genkit.training.distill.settings import WORLD

#: Share of the captions of the world that have two objects, in clips.
_PAIRS = 0.3
#: Texts that are kept encoded.
_KEPT = 20_000


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts to draw from.

    Args:
        draw: makes one from a source of randomness.
        digest: of what it draws from.
        count: how many different ones there are; None without end.
    """

    draw: Callable[[np.random.Generator], str]
    digest: str
    count: int | None = None

    def at(self, seed: int, number: int, index: int) -> str:
        """The prompt of a place in a round: a function of its arguments alone."""
        return self.draw(np.random.default_rng((seed, number, index)))


def prompts_of(given: str, kind: Kind) -> Prompts:
    """The prompts that settings name.

    Args:
        given: a file of lines, or ``world``.
        kind: what the model makes.

    Raises:
        UsageError: a file without prompts, or a world for a model of another kind.
        ArtifactError: a file that cannot be read.
    """
    if given == WORLD:
        return _of_the_world(kind)
    path = user_path(given, "--prompts")
    if path.is_dir():
        raise UsageError(explain("--prompts", place(given), "a text file with a prompt on every line, or 'world'"))
    lines = [line.strip() for line in read_text(path).splitlines()]
    found = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not found:
        raise UsageError(f"--prompts {place(given)}: no line holds a prompt")
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    return Prompts(lambda rng: found[int(rng.integers(len(found)))], digest, len(found))


def _of_the_world(kind: Kind) -> Prompts:
    from genkit.world.caption import caption
    from genkit.world.picture_caption import picture_caption
    from genkit.world.picture_scene import draw_picture
    from genkit.world.scene import draw_scene

    def clip(rng: np.random.Generator) -> str:
        return caption(draw_scene(rng, "train", actors=2 if rng.random() < _PAIRS else 1), rng)

    def picture(rng: np.random.Generator) -> str:
        return picture_caption(draw_picture(rng, 128, 128, "train", None)[0], rng)

    makers = {IMAGE.name: picture, VIDEO.name: clip}
    if kind.name not in makers:
        raise UsageError(f"--prompts {WORLD}: captions of the toy world are for pictures and clips; give a file")
    return Prompts(makers[kind.name], WORLD)


class Texts:
    """Prompts as the denoiser reads them, encoded when they are asked for and kept.

    Args:
        pipeline: with its text encoders.
        training: the family's record.
        slots: text tokens of a prompt.
    """

    def __init__(self, pipeline: Any, training: Training, slots: int):
        self._pipeline, self._training, self._slots = pipeline, training, slots
        self._known: dict[str, Tensors] = {}

    def of(self, prompts: list[str]) -> Tensors:
        """Name -> (B, ...)."""
        missing = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._known))
        if missing:
            if len(self._known) > _KEPT:
                self._known.clear()
                missing = list(dict.fromkeys(prompts))
            with torch.no_grad():
                rows = self._training.text(self._pipeline, missing, self._slots)
            self._known.update(zip(missing, rows, strict=True))
        found = [self._known[prompt] for prompt in prompts]
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}
