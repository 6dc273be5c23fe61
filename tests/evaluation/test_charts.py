"""Plots as pictures: what stands above them is whole."""

import numpy as np
import pytest
from PIL import Image

from genkit.evaluation.charts import font, page, wrapped

LONG = "met on 100 held-out prompts: speedup 2.000 ± 0.000, psnr 40.6 ± 0.4, ssim 0.991 ± 0.001, judge 0.840 ± 0.037"


@pytest.mark.parametrize("text", [LONG, "short", "", "x" * 200])
def test_lines_hold_every_word_and_fit(text):
    lines = wrapped(text, 300, 16)
    assert " ".join(lines) == text
    assert all(font(16).getlength(line) <= 300 for line in lines if " " in line)


def test_a_long_note_goes_on_below():
    plot = Image.new("RGB", (300, 100), "white")
    short, long = (page("title", [note], [[plot]]) for note in ("short", LONG))
    further = (long.height - short.height) // 24
    assert long.width == short.width and further == len(wrapped(LONG, 300, 16)) - 1 > 1
    last = np.asarray(long)[64 + 24 * further : 88 + 24 * further]
    assert (last != last[0, 0]).any()  # its last line is drawn
