"""The picture of docs/methods/broadway.md: what BroadWay makes of one map of frames, and of its frequencies.

python scripts/broadway_picture.py -o docs/methods/img/broadway.png
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image, ImageDraw, ImageFont

from genkit.attention.broadway import maps

FRAMES, CELL, GAP, TOP = 16, 12, 34, 30
ALPHA, BETA = 0.6, 1.5


def drawn_map(seed: int, rough: float) -> torch.Tensor:
    """A temporal map as models have them: frames see their neighbours, with noise of strength ``rough``."""
    draw = torch.Generator().manual_seed(seed)
    distance = (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs()
    return (-0.35 * distance + rough * torch.randn(FRAMES, FRAMES, generator=draw)).double().softmax(-1)


def stages() -> list[tuple[str, torch.Tensor]]:
    """The map, its guide, the guided map, the result."""
    own, guide = drawn_map(0, 1.2), drawn_map(1, 0.3)
    high = maps.high_pass(FRAMES, maps.widest(FRAMES))
    guided = own + ALPHA * (guide - own)
    rapid = guided @ high
    gain = maps._gain(torch.stack([(x**2).sum() for x in (own, rapid, guided - rapid)]), BETA)
    return [
        ("map of a fine block", own),
        ("map of up_blocks.1", guide),
        (f"guided, alpha {ALPHA}", guided),
        (f"high frequencies x {gain:.2f}", guided + (gain - 1) * rapid),
    ]


def panel(image: Image.Image, left: int, title: str, values: torch.Tensor, font: ImageFont.ImageFont) -> None:
    """One map: white 0, blue large, red negative."""
    draw = ImageDraw.Draw(image)
    draw.text((left, 8), title, fill="#222222", font=font)
    for row in range(FRAMES):
        for column in range(FRAMES):
            share = max(-1.0, min(1.0, float(values[row, column]) / 0.35))
            fade = round(255 * (1 - abs(share)) ** 1.2)
            colour = (fade, fade, 255) if share >= 0 else (255, fade, fade)
            corner = (left + column * CELL, TOP + row * CELL)
            draw.rectangle((*corner, corner[0] + CELL - 1, corner[1] + CELL - 1), fill=colour)
    draw.rectangle((left - 1, TOP - 1, left + FRAMES * CELL, TOP + FRAMES * CELL), outline="#999999")


def curve(image: Image.Image, left: int, found: list[tuple[str, torch.Tensor]], font: ImageFont.ImageFont) -> None:
    """Energy by frequency along the key frames, of the map, the guided one and the result."""
    draw, side = ImageDraw.Draw(image), FRAMES * CELL
    draw.text((left, 8), "energy by frequency", fill="#222222", font=font)
    draw.rectangle((left - 1, TOP - 1, left + side + 40, TOP + side), outline="#999999")
    lines = (("map", found[0][1], "#888888"), ("guided", found[2][1], "#d08000"), ("result", found[3][1], "#1040d0"))
    spectra = [(name, torch.fft.fft(x, dim=-1).abs().square().mean(0) / FRAMES, ink) for name, x, ink in lines]
    most = max(float(energy[1:9].max()) for _, energy, _ in spectra)
    for number, (name, energy, ink) in enumerate(spectra):
        points = [
            (left + 14 + (bin - 1) * (side + 12) / 7, TOP + side - 12 - float(energy[bin]) / most * (side - 30))
            for bin in range(1, 9)
        ]
        draw.line(points, fill=ink, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=ink)
        total = float(energy.sum())
        draw.text((left + 96, TOP + 8 + 16 * number), f"{name}: {total:.3f} in all", fill=ink, font=font)
    draw.text((left + 10, TOP + side + 4), "1", fill="#222222", font=font)
    draw.text((left + side + 40, TOP + side + 4), "8 turns in 16 frames", anchor="ra", fill="#222222", font=font)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    found, font, side = stages(), ImageFont.load_default(13), FRAMES * CELL
    image = Image.new("RGB", (20 + 4 * (side + GAP) + side + 130, TOP + side + 28), "white")
    for number, (title, values) in enumerate(found):
        panel(image, 20 + number * (side + GAP), title, values, font)
    curve(image, 20 + 4 * (side + GAP), found, font)
    image.save(parser.parse_args().output, optimize=True)


if __name__ == "__main__":
    main()
