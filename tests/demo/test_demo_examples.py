"""What the demo begins with is of the world that the shipped models know: what shows more is not theirs to draw."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from genkit.demo.examples import draw  # noqa: E402
from genkit.world.vocabulary import RADII  # noqa: E402


def test_examples_are_as_big_as_the_worlds_objects(tmp_path):
    examples = draw(tmp_path)
    assert len(examples) == 3
    for example in examples:
        with Image.open(example.path) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        thing = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
        rows, columns = np.nonzero(thing)
        radius = max(np.ptp(rows), np.ptp(columns)) / 2
        assert "big" in example.caption
        # A square's half side and a cross's half width are not its radius; nothing is larger than the world's largest.
        assert 0.6 * RADII["big"][0] < radius < 1.15 * RADII["big"][1], (example.caption, radius)
