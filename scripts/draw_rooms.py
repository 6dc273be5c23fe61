"""A picture of the package's rooms and the imports between them: python scripts/draw_rooms.py -o docs/img/rooms.svg

Read from the source: a dot says how many files of the row's room import the column's, anywhere in it. Rooms are in
the order of their floors, so dots right of the diagonal go down; one that goes up would be left of it, in red.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "genkit"
FLOORS = (
    ("cli",),
    ("demo",),
    ("training", "evaluation"),
    ("pipelines",),
    ("editing", "streaming"),
    ("control",),
    ("lora",),
    ("patching",),
    ("families",),
    ("attention",),
    ("kernels",),
    ("plugins", "reading", "schema", "layout", "errors"),
)
SIDE = ("world", "media", "models")  # leaves: they import the ground floor alone
CELL, LEFT, TOP = 40, 110, 96


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def arrows(package: Path = PACKAGE) -> Counter:
    """How many files of one room import the other: ``{("patching", "kernels"): 3, ...}``."""
    found: Counter = Counter()
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        room = room_of(inside.parts)
        others = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            others |= {name.split(".")[1] for name in names if name.startswith("genkit.")}
        known = {*SIDE, *(name for floor in FLOORS for name in floor)}
        if room in known:
            found.update((room, other) for other in others & known - {room})
    return found


def order() -> list[str]:
    """Rooms from the highest floor to the ground, leaves before the ground floor."""
    return [*(name for floor in FLOORS[:-1] for name in floor), *SIDE, *FLOORS[-1]]


def draw(found: Counter) -> str:
    """The picture as SVG: a row per room, a dot in the column of every room it imports. Dots right of the diagonal go
    down; one left of it would go up, and is drawn in red."""
    names = order()
    side = CELL * len(names)
    width, height = LEFT + side + 16, TOP + side + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        "<title>Which room of genkit imports which</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for index, name in enumerate(names):
        at = index * CELL
        shade = "#eef0fb" if index % 2 else "#f7f8fd"
        lines += [
            f'<rect x="{LEFT}" y="{TOP + at}" width="{side}" height="{CELL}" fill="{shade}"/>',
            f'<rect x="{LEFT + at}" y="{TOP + at}" width="{CELL}" height="{CELL}" fill="#c5cae9"/>',
            f'<text x="{LEFT - 10}" y="{TOP + at + 25}" text-anchor="end" fill="#1a237e">{name}</text>',
            f'<text transform="translate({LEFT + at + 25} {TOP - 10}) rotate(-60)" fill="#1a237e">{name}</text>',
        ]
    for (source, target), files in sorted(found.items()):
        row, column = names.index(source), names.index(target)
        x, y = LEFT + column * CELL + CELL / 2, TOP + row * CELL + CELL / 2
        fill = "#3949ab" if column > row else "#c62828"
        lines.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{min(15, 8 + files * 0.3):g}" fill="{fill}"/>'
            f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle" font-size="11" fill="#ffffff">{files}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/img/rooms.svg"))
    chosen = parser.parse_args()
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(draw(arrows()))
    print(chosen.output)
