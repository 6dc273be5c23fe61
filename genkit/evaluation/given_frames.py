"""How well a clip keeps the frame that it was given, and whether a clip that is continued goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genkit.evaluation.metrics import psnr
from genkit.evaluation.storyboard import SMOOTH, border_jumps
from genkit.world.judge import judge_clip, score
from genkit.world.reading import UNCLEAR
from genkit.world.render import render_clip
from genkit.world.scene import Scene, draw_scene, lay_out

#: Pixels that an object's centre may differ by and still be in its place: a fiftieth of the usual canvas.
REACH = 2.5


@dataclass(frozen=True)
class Begun:
    """A rendered clip, and how far it is given.

    Args:
        scene: what it shows. clip: uint8 (F, H, W, 3), all of it. before: frames of it that are continued.
    """

    scene: Scene
    clip: np.ndarray
    before: int

    @property
    def source(self) -> np.ndarray:
        """What is continued."""
        return self.clip[: self.before]


def draw_begun(count: int, seed: int, frames: int, before: int, size: tuple[int, int] = (128, 128)) -> list[Begun]:
    """Rendered clips of one moving object, the same for the same seed.

    Args:
        count: clips. seed: of all of them.
        frames: of a clip; the judge reads the motion from those behind ``before`` too, and from all of them.
        before: frames that are given. size: height and width.
    """
    rng = np.random.default_rng(seed)
    found: list[Begun] = []
    while len(found) < count:
        scene = draw_scene(rng, "train", actors=1)
        clip = render_clip(scene, lay_out(scene, frames, *size, rng), *size)
        rest = judge_clip(clip[before:] if before < frames else clip)
        if scene.actors[0].motion != "still" and score(scene, rest)["motion"]:
            found.append(Begun(scene, clip, before))
    return found


def judge_kept(given: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Whether a frame shows what the given one does.

    Args:
        given, made: uint8 (H, W, 3).

    Returns:
        ``object`` (one, of the same nearest shape), ``colour``, ``place`` (centres at most :data:`REACH` apart),
        ``kept``, all three, and ``psnr`` in dB.
    """
    one, two = (judge_clip(frame[None]).actors for frame in (given, made))
    found = {"object": 0.0, "colour": 0.0, "place": 0.0}
    if len(one) == len(two) == 1:
        a, b = one[0], two[0]
        found["object"] = float(a.nearest_shape == b.nearest_shape != UNCLEAR)
        found["colour"] = float(a.colour == b.colour != UNCLEAR)
        found["place"] = float(np.hypot(a.x[0] - b.x[0], a.y[0] - b.y[0]) <= REACH)
    return {**found, "kept": float(all(found.values())), "psnr": psnr(given[None], made[None])}


def judge_continued(begun: Begun, made: np.ndarray) -> dict[str, float]:
    """Whether a clip goes on.

    Args:
        begun: what was given. made: uint8 (F, H, W, 3), the clip with what follows it.

    Returns:
        ``motion`` of the new frames is the scene's; ``look``: so are colour and nearest shape; ``goes on``: both;
        ``jump``: the largest difference at the border, in medians of the others; ``smooth``: it is no cut, left out
        where the rendered clip itself, such as one that bounces, would be called one.
    """
    verdict = judge_clip(made[begun.before :])
    right = score(begun.scene, verdict)
    (jump,) = border_jumps(made, [begun.before])
    look = right["colour"] and right["nearest shape"]
    found = {"motion": float(right["motion"]), "look": float(look), "goes on": float(right["motion"] and look)}
    steady = border_jumps(begun.clip, [begun.before])[0] <= SMOOTH
    return {**found, "jump": jump, **({"smooth": float(jump <= SMOOTH)} if steady else {})}
