"""The leaderboard in the documentation: a page with plots, and a quote on the page of every method."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.editing.store import Store
from benchmarks.leaderboard.boards import BOARDS
from benchmarks.leaderboard.report import ABOUT, Place, cells, places, section

#: Between these lines a method's page is written by the command.
BEGIN, END = "<!-- leaderboard: made by `python -m benchmarks leaderboard --docs docs` -->", "<!-- leaderboard: end -->"
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
            drawn.quantize(64).save(out, format="PNG", optimize=True)
            files.new(path).write_bytes(out.getvalue())
    return [*texts, *pictures]


def _page(store: Store, shown: dict[str, list[Place]]) -> str:
    parts = [
        "# Leaderboard",
        "",
        "What does a method save, and what does it do to the output? Every method that chooses pairs without training, "
        "on the models that are shipped, at several densities and schedules (`python -m benchmarks leaderboard`); "
        "[methods at equal density](../benchmarks/results/recall.md) has the share of attention mass they keep, and "
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

    def series(x: Any) -> list[Series]:
        drawn = []
        named: set[str] = set()
        for place in sorted(found, key=lambda each: -each.psnr[0]):
            method = place.entry.method[0]
            name = "" if method in named else method
            named.add(method)
            drawn.append(Series([x(place)], [place.psnr[0]], colours[method], dots=True, wide=place.best, names=[name]))
        return drawn

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
    note = "Large dots: no other row has a higher PSNR for as few FLOPs."
    return page(BOARDS[name].title, [note], [[left, right]])


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
    return f"{BEGIN}\n## On the leaderboard\n{head}\n\n{table(rows)}\n{END}\n"


def _settings(place: Place) -> str:
    return " ".join(f"{key}={value}" for key, value in place.entry.method[1].items())


def quoted(page: str, quote: str) -> str:
    """A method's page with the quote in place of an older one, or at its end.

    Raises:
        SystemExit: a begin without an end, or the other way round.
    """
    if (BEGIN in page) != (END in page):
        raise SystemExit(f"a page has one of {BEGIN!r} and {END!r} without the other")
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n{quote}"
    head, _, rest = page.partition(BEGIN)
    return head + quote + rest.partition(END)[2].removeprefix("\n")
