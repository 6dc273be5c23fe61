"""Layouts that tests of methods share."""

from __future__ import annotations

import math

from genkit.layout import Segment, TokenLayout


def layout_of(grid, before=0, after=0):
    parts = (Segment("text", before), Segment("grid", math.prod(grid)), Segment("reference", after))
    return TokenLayout(grid, tuple(part for part in parts if part.length))


LAYOUTS = {
    "video": layout_of((4, 6, 6)),
    "ragged, text first": layout_of((3, 5, 7), before=5),
    "picture, text and reference": layout_of((1, 8, 12), before=4, after=9),
}
