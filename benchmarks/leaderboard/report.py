"""The tables of the leaderboard, and which rows no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.editing.store import Row, Store
from benchmarks.environment import machine_line, table
from benchmarks.leaderboard.boards import BOARDS, Board, Entry
from benchmarks.methods.cases import settings_text

ABOUT = (
    "A run of the model at the size it was trained for is enlarged, noised again and denoised under every method "
    "(from noise the models draw little at sizes they were not trained for). Same prompts, base runs and noise in "
    "every row. Steps: those of this second pass in which the method works, in every layer; the others are dense. "
    "FLOPs: operations of the denoiser's attention that the machine executes, in percent of a dense run's, dense "
    "steps and layers that no method serves included. Attention and all: time inside attention calls (choosing of "
    "blocks included) and processor time of the whole second pass, as shares of the dense run's of the same prompt, "
    "medians. PSNR (dB) and SSIM: to the dense second pass, means. Right: share of prompts in which the judge finds "
    "everything right, read at the trained size; change: against dense, prompt by prompt, in points. Numbers behind ± "
    "are standard errors over prompts. ★: no other row has a higher PSNR for as few FLOPs."
)


@dataclass(frozen=True)
class Place:
    """A row as it stands on a board.

    Args:
        entry: what ran. flops: percent of dense attention's, NaN where a method does not know it.
        attention, all: time as shares of dense, medians.
        psnr, ssim, change: means and their standard errors. right: share and its error. count: prompts.
        best: no other row has a higher PSNR for as few FLOPs.
    """

    entry: Entry
    count: int
    flops: float
    attention: float
    all: float
    psnr: tuple[float, float]
    ssim: tuple[float, float]
    right: tuple[float, float]
    change: tuple[float, float]
    best: bool = False


def rows_of(store: Store, name: str) -> tuple[Row | None, list[tuple[Entry, Row]]]:
    """Dense attention's row of a board and those of the entries that were measured."""
    board = BOARDS[name]
    found = [(entry, store.rows.get(f"{board.case.model}/{name}/{entry.title}")) for entry in board.entries]
    return store.rows.get(f"{board.case.model}/{name}/dense"), [(entry, row) for entry, row in found if row is not None]


def places(store: Store, name: str) -> list[Place]:
    """The rows of a board, the cheapest first."""
    dense, found = rows_of(store, name)
    if dense is None:
        return []
    every = [_place(entry, row, dense) for entry, row in found if row.count]
    every = [_marked(place, every) for place in every]
    return sorted(every, key=lambda place: (np.isnan(place.flops), place.flops, -place.psnr[0]))


def _place(entry: Entry, row: Row, dense: Row) -> Place:
    count = row.count

    def against(name: str) -> float:
        return float(np.median(np.array(row.values(name)) / np.array(dense.values(name)[:count])))

    change = 100 * (np.array(row.values("all")) - np.array(dense.values("all")[:count]))
    return Place(
        entry, count, mean(row.values("executed"))[0], against("attention ms"), against("ms"),
        mean(row.values("psnr")), mean(np.array(row.values("ssim")) / 100), share(row.values("all")), mean(change),
    )  # fmt: skip


def _marked(place: Place, every: Sequence[Place]) -> Place:
    beaten = any(
        other.flops <= place.flops and other.psnr[0] >= place.psnr[0] and other.entry != place.entry for other in every
    )
    return replace(place, best=not beaten and not np.isnan(place.flops))


def mean(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard error; NaN of a single value, both of none."""
    if not len(values):
        return float("nan"), float("nan")
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return float(np.mean(values)), error


def share(flags: Sequence[float]) -> tuple[float, float]:
    """Percent and its standard error; at none or all that of half a case."""
    count, right = len(flags), float(np.mean(flags))
    inner = min(max(right, 0.5 / count), 1 - 0.5 / count)
    return 100 * right, 100 * (inner * (1 - inner) / count) ** 0.5


def text(store: Store) -> str:
    """The whole report."""
    parts = ["# Leaderboard of attention methods", "", machine_line(store.facts), ABOUT, ""]
    for name, board in BOARDS.items():
        if places(store, name):
            parts += section(store, name, board)
    return "\n".join(parts)


def section(store: Store, name: str, board: Board) -> list[str]:
    """One board: what was run, and its table."""
    dense, _ = rows_of(store, name)
    assert dense is not None, "asked for by the caller"
    case = board.case
    seconds, attention = (float(np.median(dense.values(name))) / 1e3 for name in ("ms", "attention ms"))
    base, right = (share(dense.values(key)) for key in ("base", "all"))
    head = (
        f"{dense.settings['dtype']}, weights {dense.weights}; {'; '.join(dense.at)}. The second pass makes "
        f"{case.strength:g} of {case.steps} steps. {dense.count} prompts; dense: {seconds:.2f} s, {attention:.2f} s of "
        f"them attention, right {right[0]:.0f} ± {right[1]:.0f} % (before enlarging {base[0]:.0f} ± {base[1]:.0f} %)."
    )
    return [f"## {board.title}", "", head, "", table([cells(place) for place in places(store, name)]), ""]


def cells(place: Place) -> dict[str, object]:
    """Table cells of a row."""
    return {
        "": "★" if place.best else "",
        "method": settings_text(place.entry.method),
        "steps": place.entry.steps,
        "prompts": place.count,
        "FLOPs %": "unknown" if np.isnan(place.flops) else f"{place.flops:.1f}",
        "attention": f"{place.attention:.2f}",
        "all": f"{place.all:.2f}",
        "PSNR": f"{place.psnr[0]:.2f} ± {place.psnr[1]:.2f}",
        "SSIM": f"{place.ssim[0]:.3f} ± {place.ssim[1]:.3f}",
        "right %": f"{place.right[0]:.0f} ± {place.right[1]:.0f}",
        "change": f"{place.change[0]:+.1f} ± {place.change[1]:.1f}",
    }
