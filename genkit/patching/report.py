"""What a patch covers and what really ran, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from genkit.attention.base import Density


@dataclass(frozen=True)
class SiteRow:
    """One site of a patch.

    Args:
        name, role, layer, heads: the attention module.
        method: the method with its settings, or None where the schedule leaves the layer out.
        grid: (T, H, W) tokens as of the latest call, or None before the first.
        tokens, keys: queries and keys of the latest call, or None.
        density: computed and executed share of pairs, None when unknown (no call yet, or it depends on the data).
    """

    name: str
    role: str
    layer: int
    heads: int
    method: str | None
    grid: tuple[int, int, int] | None = None
    tokens: int | None = None
    keys: int | None = None
    density: Density | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Description:
    """What a patch is: model family, schedule and a row per site. Printing gives a table."""

    family: str
    schedule: str
    rows: tuple[SiteRow, ...]
    untouched: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "family": self.family,
            "schedule": self.schedule,
            "sites": [row.to_dict() for row in self.rows],
            "untouched": list(self.untouched),
        }

    def __str__(self) -> str:
        cells = [("layer", "site", "role", "method", "grid", "density")]
        for row in self.rows:
            grid = "?" if row.grid is None else "x".join(map(str, row.grid))
            density = "" if row.method is None else _density_text(row.density, row.grid is None)
            cells.append((str(row.layer), row.name, row.role, row.method or "model's own", grid, density))
        text = f"{self.family}: {len(self.rows)} sites, schedule {self.schedule}\n{_table(cells)}"
        if self.untouched:
            text += f"\nnot patched: {len(self.untouched)} more attention layers"
        return text


@dataclass(frozen=True)
class SiteReport:
    """What happened at one site.

    Args:
        ran: calls the method served. outside: calls the schedule leaves to the model. declined: reason -> calls the
            model's own attention served although the schedule covers them. skipped: forwards without attention.
        density: mean over the served calls, None when unknown.
        seconds: time inside the method. own_seconds: time inside the model's own attention at this site.
        steps: sampling steps the method ran in. branches: the branches it ran in.
    """

    name: str
    role: str
    layer: int
    method: str
    ran: int
    outside: int
    declined: dict[str, int]
    skipped: int
    density: Density | None
    seconds: float
    own_seconds: float
    steps: tuple[int, ...]
    branches: tuple[str, ...]

    @property
    def calls(self) -> int:
        """All attention calls of the site."""
        return self.ran + self.outside + sum(self.declined.values())


@dataclass(frozen=True)
class Report:
    """What really ran under a patch. Printing gives a summary.

    Args:
        sites: a row per site the patch holds.
        forwards: denoiser calls.
        steps: sampling steps of the latest run, None when nobody told.
    """

    sites: tuple[SiteReport, ...]
    forwards: int
    steps: int | None
    notes: tuple[str, ...] = field(default=())

    @property
    def calls(self) -> int:
        """All attention calls at the patched sites."""
        return sum(site.calls for site in self.sites)

    @property
    def ran(self) -> int:
        """Calls the methods served."""
        return sum(site.ran for site in self.sites)

    @property
    def outside(self) -> int:
        """Calls the schedule leaves to the model."""
        return sum(site.outside for site in self.sites)

    @property
    def declined(self) -> dict[str, int]:
        """Reason -> calls that fell back to the model's own attention."""
        total: dict[str, int] = {}
        for site in self.sites:
            for reason, count in site.declined.items():
                total[reason] = total.get(reason, 0) + count
        return total

    @property
    def seconds(self) -> float:
        """Time inside the methods."""
        return sum(site.seconds for site in self.sites)

    @property
    def own_seconds(self) -> float:
        """Time inside the model's own attention at the patched sites."""
        return sum(site.own_seconds for site in self.sites)

    @property
    def density(self) -> Density | None:
        """Mean over all served calls; None when a served site's density is unknown or nothing was served."""
        return mean_density([(site.density, site.ran) for site in self.sites])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        density = self.density
        return {
            "forwards": self.forwards,
            "steps": self.steps,
            "calls": self.calls,
            "ran": self.ran,
            "outside": self.outside,
            "declined": self.declined,
            "seconds": self.seconds,
            "own_seconds": self.own_seconds,
            "density": None if density is None else asdict(density),
            "notes": list(self.notes),
            "sites": [asdict(site) for site in self.sites],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.ran} of {self.calls} attention calls ran the method in {self.seconds:.3f} s, {self.outside} were "
            f"outside the schedule, {sum(self.declined.values())} declined (model's own attention: "
            f"{self.own_seconds:.3f} s); {self.forwards} denoiser calls, {self.steps or 'unknown'} steps",
        ]
        if self.ran:
            lines.append(f"density: {self.density or 'not known without the data'}")
        lines += [f"declined {count} calls: {reason}" for reason, count in self.declined.items()]
        lines += list(self.notes)
        cells = [("layer", "site", "method", "ran", "outside", "declined", "seconds", "steps")]
        for site in self.sites:
            cells.append(
                (
                    str(site.layer),
                    site.name,
                    site.method,
                    str(site.ran),
                    str(site.outside),
                    str(sum(site.declined.values())),
                    f"{site.seconds:.3f}",
                    _steps_text(site.steps),
                )
            )
        return "\n".join([*lines, _table(cells)])


def mean_density(parts: list[tuple[Density | None, int]]) -> Density | None:
    """Mean of densities weighted by calls; None when one of them is unknown or there are none."""
    parts = [(density, calls) for density, calls in parts if calls]
    if not parts or any(density is None for density, _ in parts):
        return None
    total = sum(calls for _, calls in parts)
    return Density(
        sum(density.computed * calls for density, calls in parts) / total,
        sum(density.executed * calls for density, calls in parts) / total,
        all(density.dense for density, _ in parts),
    )


def _density_text(density: Density | None, unseen: bool) -> str:
    if density is None:
        return "known after the first call" if unseen else "depends on the data"
    return str(density)


def _steps_text(steps: tuple[int, ...]) -> str:
    """``0-3,7`` for (0, 1, 2, 3, 7)."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and runs[-1][1] == step - 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _table(cells: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
