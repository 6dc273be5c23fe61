"""Write one picture of two things that toy-image has no words for, with its caption, to learn two words from.

    python scripts/write_subjects.py subjects      # subjects/two.png, subjects/two.txt

A striped orange heart and a dotted cyan ring: toy-image knows the colours and textures, and neither outline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from genkit.media import write_media
from genkit.world import Picture, PictureActor, Placement, render_picture
from genkit.world.concepts.outlines import heart, ring

CAPTION = "a blorp and a zint on a gray background"


def draw() -> np.ndarray:
    """The picture, (1, 128, 128, 3) uint8."""
    subjects = (
        PictureActor("orange", "circle", "big", texture="striped"),
        PictureActor("cyan", "circle", "big", texture="dotted"),
    )
    places = Placement(*(np.array(row, np.float32) for row in ((38, 90), (46, 84), (25, 25))))
    return render_picture(Picture(subjects, "gray"), places, 128, 128, (heart, ring))[None]


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_media(folder / "two.png", draw(), force=True)
    (folder / "two.txt").write_text(CAPTION + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
