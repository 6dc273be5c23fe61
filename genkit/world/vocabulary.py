"""The closed vocabulary of the toy world: what can be shown and by which words it is called."""

from __future__ import annotations

import numpy as np

# RGB in 0..255. Every two entries that may meet in a picture are at least 80 apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (50, 170, 60),
    "blue": (45, 85, 225),
    "yellow": (245, 215, 50),
    "purple": (140, 50, 175),
    "orange": (250, 135, 30),
    "cyan": (50, 205, 225),
    "pink": (250, 150, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (20, 20, 24),
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "blue": COLOURS["blue"],
    "green": COLOURS["green"],
    "purple": COLOURS["purple"],
    "red": COLOURS["red"],
    "yellow": COLOURS["yellow"],
    "orange": COLOURS["orange"],
    "cyan": COLOURS["cyan"],
    "pink": COLOURS["pink"],
}
#: Backgrounds that scenes are drawn with unless others are named: those that the first shipped models were trained on,
#: so that their prompts in tests and benchmarks stay what they are.
FIRST_BACKGROUNDS: tuple[str, ...] = ("black", "white", "gray", "blue", "green", "purple")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
SIZES: tuple[str, ...] = ("small", "medium", "big")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up_left": (-1, -1),
    "up_right": (1, -1),
    "down_left": (-1, 1),
    "down_right": (1, 1),
}
MOTIONS: tuple[str, ...] = ("still", *DIRECTIONS, "bounce", "grow", "shrink", "spin")

#: Radius in pixels of a disc of equal area, by size word. Sizes do not scale with the canvas.
RADII: dict[str, tuple[float, float]] = {"small": (12.5, 14.0), "medium": (17.0, 19.0), "big": (22.5, 25.0)}

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "medium": (), "big": ("big", "large")}

#: Colour-shape pairs that training never shows together.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("orange", "triangle"), ("cyan", "circle"), ("purple", "square"), ("yellow", "cross")}
)

PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
BACKGROUND_PALETTE = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
