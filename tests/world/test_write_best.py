"""Own samples that the judge finds right, written as files to train on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_best.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_best", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Drawer:
    """Makes every sample's value the seed it came from; caption ``n`` is right from attempt ``n`` on."""

    def __init__(self, script, count):
        self.count, self.calls = count, []
        self.start = script.SEED
        self.maker = script.Maker(self.draw, self.make, self.right, ".png")

    def draw(self, split, count, seed):
        assert split == "train"
        return [(number, f"caption {number}") for number in range(count)]

    def make(self, captions, seed):
        self.calls.append((list(captions), seed))
        attempt = (seed - self.start) // self.count
        return np.stack([np.full((16, 16, 3), attempt, np.uint8) for _ in captions])

    def right(self, scene, sample):
        return int(sample[0, 0, 0]) >= scene


def options(folder, **changes):
    found = {"folder": folder, "count": 5, "of": 3, "batch": 2, "seed": 0, "actors": None}
    return argparse.Namespace(**{**found, **changes})


def test_the_first_right_sample_of_every_caption_is_kept(script, tmp_path):
    drawer = Drawer(script, 5)
    assert script.write(drawer.maker, options(tmp_path)) == (3, 1 + 2 + 3 + 3 + 3)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == ["best-00000", "best-00001", "best-00002"]
    assert (tmp_path / "best-00002.txt").read_text() == "caption 2\n"
    # Captions with a right sample are not made again, and no two attempts begin with one seed.
    assert drawer.calls[:3] == [
        (["caption 0", "caption 1"], script.SEED),
        (["caption 1"], script.SEED + 5),
        (["caption 2", "caption 3"], script.SEED + 2),
    ]
    assert len({seed for _, seed in drawer.calls}) == len(drawer.calls)


def test_it_goes_on_where_it_was_stopped(script, tmp_path):
    class Stopped(Exception):
        pass

    drawer = Drawer(script, 5)
    whole = tmp_path / "whole"
    whole.mkdir()
    script.write(drawer.maker, options(whole))

    part = tmp_path / "part"
    part.mkdir()
    again = Drawer(script, 5)
    make = again.make

    def stops(captions, seed):
        if len(again.calls) == 4:
            raise Stopped
        return make(captions, seed)

    with pytest.raises(Stopped):
        script.write(script.Maker(again.draw, stops, again.right, ".png"), options(part))
    before = len(again.calls)
    script.write(again.maker, options(part))
    assert again.calls[before][0][0] == "caption 2", "captions that were finished are not made again"
    assert json.loads((part / script.TRIED).read_text()) == json.loads((whole / script.TRIED).read_text())
    assert {p.name: p.read_bytes() for p in part.glob("*.png")} == {p.name: p.read_bytes() for p in whole.glob("*.png")}


def test_the_judge_decides_of_a_shipped_model(script, tmp_path):
    """Of two true pictures each is right for its own scene alone."""
    from genkit.world.picture_render import render_picture
    from genkit.world.picture_scene import place

    found = script.maker("toy-dit", options(tmp_path, dtype="float32", batch=1))
    (scene, _), (other, _) = found.draw("train", 2, 3)
    drawn = render_picture(scene, place(scene, 128, 128, np.random.default_rng(0)), 128, 128)
    assert found.right(scene, drawn)
    assert not found.right(other, drawn)
