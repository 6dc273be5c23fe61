"""How well one clip shows several prompts in a row: every shot by its prompt, the object and the picture over borders.

The borders are those that were asked for; a clip that changes elsewhere is judged as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from genkit.errors import UsageError, explain
from genkit.evaluation.toy import ATTRIBUTES
from genkit.world.caption import caption
from genkit.world.judge import judge_clip, score
from genkit.world.reading import UNCLEAR
from genkit.world.scene import Scene, draw_scene
from genkit.world.vocabulary import DIRECTIONS

#: Differences of neighbouring frames on either side of a border that count as the border's own.
REACH = 3
#: Largest jump of a border without a cut, in medians of the other frames' differences.
SMOOTH = 1.5

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Storyboard:
    """One object that moves in as many ways as there are shots.

    Args:
        scenes: of the shots; they differ in the motion alone.
    """

    scenes: tuple[Scene, ...]

    @property
    def prompts(self) -> list[str]:
        """The captions of the shots."""
        return [caption(scene) for scene in self.scenes]


def draw_storyboards(count: int, seed: int = 0, shots: int = 3) -> list[Storyboard]:
    """Storyboards at random, the same for the same seed: an object of the training's kind, and for every shot a
    direction that does not go on the way of those before, at whose end is the edge of the picture."""
    rng = np.random.default_rng(seed)
    found: list[Storyboard] = []
    while len(found) < count:
        scene = draw_scene(rng, "train", actors=1)
        motions: list[str] = []
        while len(motions) < shots:
            open_ways = [name for name in DIRECTIONS if all(_along(name, other) <= 0 for other in motions)]
            if not open_ways:
                motions.clear()
                continue
            motions.append(open_ways[int(rng.integers(len(open_ways)))])
        (actor,) = scene.actors
        found.append(Storyboard(tuple(replace(scene, actors=(replace(actor, motion=each),)) for each in motions)))
    return found


def _along(one: str, other: str) -> int:
    """Above 0 where two directions have a way in common."""
    return sum(a * b for a, b in zip(DIRECTIONS[one], DIRECTIONS[other], strict=True))


def judge_shots(scenes: Sequence[Scene], clip: np.ndarray, spans: Spans) -> dict[str, float]:
    """Shares of the shots that are right, by attribute, and of the borders over which the object keeps its look.

    Args:
        scenes: of the shots. clip: uint8 (F, H, W, 3). spans: first frame and the one behind the last, of every shot.

    Returns:
        The attributes of :data:`genkit.evaluation.toy.ATTRIBUTES`; ``kept``: colour and nearest shape are the same in
        both shots of a border; ``smooth``: its jump is no cut.
    """
    if len(scenes) != len(spans):
        raise UsageError(explain("spans", f"{len(spans)} of them", f"one for each of {len(scenes)} scenes"))
    verdicts = [judge_clip(clip[first:end]) for first, end in spans]
    results = [score(scene, verdict) for scene, verdict in zip(scenes, verdicts, strict=True)]
    found = {
        name: float(np.mean([result[name] for result in results if name in result]))
        for name in ATTRIBUTES
        if any(name in result for result in results)
    }
    looks = [
        (verdict.actors[0].colour, verdict.actors[0].nearest_shape) if len(verdict.actors) == 1 else None
        for verdict in verdicts
    ]
    pairs = list(zip(looks, looks[1:], strict=False))
    found["kept"] = float(np.mean([a is not None and UNCLEAR not in a and a == b for a, b in pairs]))
    jumps = border_jumps(clip, [first for first, _ in spans[1:]])
    found["smooth"] = float(np.mean([jump <= SMOOTH for jump in jumps]))
    found["jump"] = float(np.median(jumps))
    return found


def border_jumps(clip: np.ndarray, borders: Sequence[int], reach: int = REACH) -> list[float]:
    """Largest difference of neighbouring frames at each border, in medians of those elsewhere.

    Args:
        clip: uint8 (F, H, W, 3). borders: first frame of every shot but the first.
        reach: differences on either side of the border that count as its own.
    """
    differences = np.abs(np.diff(clip.astype(np.float64), axis=0)).mean((1, 2, 3))
    windows = [slice(max(border - 1 - reach, 0), border + reach) for border in borders]
    elsewhere = np.ones(len(differences), bool)
    for window in windows:
        elsewhere[window] = False
    usual = float(np.median(differences[elsewhere])) if elsewhere.any() else 0.0
    return [float(differences[window].max() / max(usual, 1e-6)) for window in windows]
