"""Plots as pictures: what stands above them is whole."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from genkit.evaluation import charts
from genkit.evaluation.charts import Axis, Series, font, page, plot, wrapped

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


def test_names_of_near_dots_hide_neither_each_other_nor_dots(monkeypatch):
    written = []
    draw = ImageDraw.ImageDraw.text

    def text(pen, where, name, *rest, **more):
        if more.get("stroke_width"):
            written.append((name, pen.textbbox(where, name, font(12), anchor=more["anchor"])))
        return draw(pen, where, name, *rest, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    names = ("a first name", "a second name", "a third name", "a fourth name")
    dots = Series((1.0, 1.001, 1.002, 4.0), (1.0, 1.01, 1.02, 1.0), (0, 0, 200), names=names, dots=True)
    plot((700, 400), "title", "note", [dots], Axis("x"), Axis("y", low=0.0, high=2.0))
    assert [name for name, _ in written] == list(names)
    boxes = [box for _, box in written]
    pairs = [(one, other) for number, one in enumerate(boxes) for other in boxes[:number]]
    assert not any(charts._overlap(*pair) for pair in pairs)
    assert all(box[0] >= 0 and box[2] <= 700 for box in boxes)
