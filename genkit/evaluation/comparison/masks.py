"""Pictures of what the methods of a variant see, for the report."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from genkit.errors import GenkitError

MOST_TOKENS = 200_000
WIDTH = 1280


def pictures(served: Iterable[tuple[Any, Any]]) -> list[tuple[str, bytes]]:
    """The method's words and a PNG for every method that ran on a grid; those that have no such picture are left
    out."""
    from PIL import Image

    from genkit.attention.draw import draw

    found = []
    for method, site in served:
        layout = site.layout
        if not layout.has_grid or layout.length > MOST_TOKENS or layout != site.key_layout:
            continue
        try:
            picture, _ = draw(method, layout, layer=site.layer)
        except GenkitError:  # a method without such a picture
            continue
        if picture.width > WIDTH:
            size = (WIDTH, round(picture.height * WIDTH / picture.width))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        held = io.BytesIO()
        picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(held, "PNG", optimize=True)
        found.append((method.describe(), held.getvalue()))
    return found
