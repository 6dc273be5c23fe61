"""Things that the shipped models were never shown: to teach them by a LoRA, and to judge whether they were learned.

>>> import numpy as np
>>> from genkit.world import concepts
>>> sample = concepts.draw_concept_clip("ring", np.random.default_rng(0), frames=9, height=128, width=128)
>>> sample.caption
'a yellow ring moves left on a white background'
>>> concepts.shows_concept(sample.pixels, "ring")
True
"""

from genkit.world.concepts.concept import (
    CLIP_CONCEPTS,
    CONCEPTS,
    PICTURE_CONCEPTS,
    SHAPE_CONCEPTS,
    STYLES,
    Sample,
    draw_concept_clip,
    draw_concept_picture,
    named,
)
from genkit.world.concepts.judge import shows_concept

__all__ = [
    "CLIP_CONCEPTS",
    "CONCEPTS",
    "PICTURE_CONCEPTS",
    "SHAPE_CONCEPTS",
    "STYLES",
    "Sample",
    "draw_concept_clip",
    "draw_concept_picture",
    "named",
    "shows_concept",
]
