"""The leaderboard in the documentation: a page with plots, and a quote on the page of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.editing.store import Store
from benchmarks.leaderboard.boards import BOARDS
from benchmarks.leaderboard.report import ABOUT, Place, cells, places, section

#: Between these lines a method's page is written by the command.
BEGIN, END = "<!-- leaderboard: made by `python -m benchmarks leaderboard --docs docs` -->", "<!-- leaderboard: end -->"
#: The section of a method's page behind what was measured.
_BEHIND = "\n## Checked\n"
_COLOURS = ((37, 99, 235), (220, 38, 38), (22, 163, 74), (217, 119, 6), (147, 51, 234), (8, 145, 178), (190, 24, 93),
            (101, 163, 13), (71, 85, 105))  # fmt: skip


def render(store: Store, docs: Path) -> list[Path]:
    """Write the page, its plots and the quotes, all or none.

    Returns:
        The files written.
    """
    from genkit.media.atomic import Files

    shown = {name: found for name in BOARDS if (found := places(store, name))}
    texts = {docs / "leaderboard.md": _page(store, shown)}
    for method in sorted({place.entry.method[0] for found in shown.values() for place in found}):
        path = docs / "methods" / f"{method}.md"
        texts[path] = quoted(path.read_text(encoding="utf-8"), _quote(method, shown))
    pictures = {docs / "img" / f"leaderboard-{name}.png": picture(name, found) for name, found in shown.items()}
    with Files() as files:
        for path, told in texts.items():
            files.new(path).write_text(told, encoding="utf-8")
        for path, drawn in pictures.items():
            out = BytesIO()
            drawn.quantize(256).save(out, format="PNG", optimize=True)
            files.new(path).write_bytes(out.getvalue())
    return [*texts, *pictures]


def _page(store: Store, shown: dict[str, list[Place]]) -> str:
    parts = [
        "# Leaderboard",
        "",
        "What does a method save, and what does it do to the output? Every method that chooses pairs without training, "
        "on the models that are shipped, at several densities and schedules (`python -m benchmarks leaderboard`); "
        "[methods at equal density](../benchmarks/results/methods.md) has the share of attention mass they keep, and "
        "[`genkit compare`](tasks/comparing.md) asks the same of your model and prompts.",
        "",
        ABOUT,
        "",
        "These models are small: their attention is spread wider than that of large ones, and sparse attention costs "
        "more likeness here. Compare rows, not numbers with those of papers.",
        "",
    ]
    for name in shown:
        told = section(store, name, BOARDS[name])
        parts += [*told[:4], f"![PSNR against FLOPs and time](img/leaderboard-{name}.png)", "", *told[4:]]
    return "\n".join(parts)


def picture(name: str, found: list[Place]) -> Any:
    """Quality against operations and against time, a colour a method; large dots are rows that no other one beats."""
    from genkit.evaluation.charts import Axis, Series, page, plot

    methods = sorted({place.entry.method[0] for place in found})
    colours = {method: _COLOURS[number % len(_COLOURS)] for number, method in enumerate(methods)}

    def series(x: Callable[[Place], float]) -> list[Series]:
        at = [(x(place), place.psnr[0]) for place in found]
        named = {method: _alone([place.entry.method[0] for place in found], at, method) for method in methods}
        return [
            Series(
                [at[number][0]], [at[number][1]], colours[place.entry.method[0]], dots=True, wide=_unbeaten(at, number),
                names=[place.entry.method[0] if named[place.entry.method[0]] == number else ""],
            )
            for number, place in enumerate(found)
        ]  # fmt: skip

    size, y = (640, 460), Axis("PSNR to dense, dB")
    left = plot(
        size, "Operations", "executed, the whole run", series(lambda p: p.flops), Axis("attention FLOPs, % of dense"), y
    )
    right = plot(
        size,
        "Time",
        "on the processor named below",
        series(lambda p: p.attention),
        Axis("attention time, dense = 1"),
        y,
    )
    note = "Large dots: no other row is as cheap and as like. A colour a method."
    return page(BOARDS[name].title, [note], [[left, right]])


def _unbeaten(at: Sequence[tuple[float, float]], number: int) -> bool:
    """Whether no other point has as small an x and as large a y."""
    mine = at[number]
    return mine[0] == mine[0] and not any(x <= mine[0] and y >= mine[1] for n, (x, y) in enumerate(at) if n != number)


def _alone(methods: Sequence[str], at: Sequence[tuple[float, float]], method: str) -> int:
    """Of a method's points the one that is farthest from those of other methods: there is room for its name."""
    points = np.array(at)
    points = (points - np.nanmin(points, 0)) / np.maximum(np.ptp(np.nan_to_num(points), 0), 1e-9)
    own = [number for number, each in enumerate(methods) if each == method]
    others = [number for number, each in enumerate(methods) if each != method]
    if not others:
        return own[0]
    # A name is wide and low: what stands above or below is less in its way than what stands beside.
    apart = {}
    for number in own:
        gaps = np.hypot(*((points[others] - points[number]) * (0.4, 1)).T)
        apart[number] = np.min(gaps, initial=np.inf, where=np.isfinite(gaps)) if np.isfinite(gaps).any() else -1.0
    return max(apart, key=lambda number: apart[number])


def _quote(method: str, shown: dict[str, list[Place]]) -> str:
    """The method's best row of every board, that of the highest PSNR among those that at least halve the operations."""
    rows = []
    for name, found in shown.items():
        mine = [place for place in found if place.entry.method[0] == method]
        if not mine:
            continue
        half = [place for place in mine if place.flops <= 50]
        best = max(half or mine, key=lambda place: place.psnr[0])
        row = cells(best)
        del row["method"], row["prompts"], row[""]
        rows.append({"model": name, "settings": f"`{_settings(best)}`"} | row)
    from benchmarks.environment import table

    head = (
        "Best row on the [leaderboard](../leaderboard.md) (the highest PSNR among those that at least halve the "
        "attention FLOPs, or of all; shares of dense attention):"
    )
    return f"{BEGIN}\n{head}\n\n{table(rows)}\n{END}\n"


def _settings(place: Place) -> str:
    return " ".join(f"{key}={value}" for key, value in place.entry.method[1].items()) or "the defaults"


def quoted(page: str, quote: str) -> str:
    """A method's page with the quote in place of an older one, or at the end of what was measured.

    Raises:
        SystemExit: a begin without an end, or the other way round.
    """
    if (BEGIN in page) != (END in page):
        raise SystemExit(f"a page has one of {BEGIN!r} and {END!r} without the other")
    if BEGIN not in page:
        measured, mark, rest = page.partition(_BEHIND)
        return f"{measured.rstrip()}\n\n{quote}{mark}{rest}"
    head, _, rest = page.partition(BEGIN)
    return head + quote + rest.partition(END)[2].removeprefix("\n")
