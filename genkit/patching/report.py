"""What a patch covers and what really ran, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genkit.attention.method import Density
from genkit.patching.first_step import Checked

#: What is told in place of a density of methods that hide nothing.
ADDS = "adds to the attention, hides no pairs"


@dataclass(frozen=True)
class SiteRow:
    """One site of a patch.

    Args:
        name, role, layer, heads: the attention module; heads None = known after the first call.
        method: the method with its settings, or None where the schedule leaves the layer out.
        grid: (T, H, W) tokens as of the latest call, or None before the first.
        tokens, keys: queries and keys of the latest call, or None.
        density: computed and executed share of pairs, None when unknown (no call yet, or it depends on the data).
        adds: the method adds to the attention that others compute, and hides no pairs.
    """

    name: str
    role: str
    layer: int
    heads: int | None
    method: str | None
    grid: tuple[int, int, int] | None = None
    tokens: int | None = None
    keys: int | None = None
    density: Density | None = None
    adds: bool = False

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
            density = "" if row.method is None else _density_text(row.density, row.grid is None, row.adds)
            cells.append((str(row.layer), row.name, row.role, row.method or "model's own", grid, density))
        text = f"{self.family}: {len(self.rows)} sites, schedule {self.schedule}\n{_table(cells)}"
        if self.untouched:
            text += f"\nnot patched: {len(self.untouched)} more attention layers"
        return text


@dataclass(frozen=True)
class SiteReport:
    """What happened at one site.

    Args:
        ran: calls the method served. outside: calls that the schedule, or the method's own settings, leave to the
            model. declined: reason -> calls the model's own attention served although they are the method's.
            skipped: forwards without attention.
        density: mean over the served calls, None when unknown.
        seconds: time inside the method. own_seconds: time inside the model's own attention at this site.
        steps: sampling steps the method ran in. branches: the branches it ran in.
        remark: why no attention call may have come here; empty when calls come as they should.
        adds: the method adds to the attention that others compute, and hides no pairs.
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
    remark: str = ""
    adds: bool = False

    @property
    def calls(self) -> int:
        """All attention calls of the site."""
        return self.ran + self.outside + sum(self.declined.values())


@dataclass(frozen=True)
class Report:
    """What really ran under a patch. Printing gives a summary.

    Args:
        forwards: denoiser calls.
        steps: sampling steps of the latest run, None when nobody told.
        calls: all attention calls at the patched sites = ran + outside + declined.
        ran: calls the methods served.
        outside: calls the schedule leaves to the model.
        declined: reason -> calls that fell back to the model's own attention although the schedule covers them.
        seconds: time inside the methods.
        own_seconds: time inside the model's own attention at the patched sites.
        density: mean over all served calls of methods that compute the attention; None when a density is unknown or
            nothing was served.
        work: query-key pairs paid for as a share of dense attention's, over all layers of the patched roles: layers,
            steps, branches and heads that the schedule leaves dense count in full. None when a density is unknown.
        sites: a row per site the patch holds.
        remarks: what the user should know, one line each: settings that had no effect, layers
            that no call reached.
        checks: what the first-step check found at every site it came to, see :class:`genkit.Check`.
    """

    forwards: int
    steps: int | None
    calls: int
    ran: int
    outside: int
    declined: dict[str, int]
    seconds: float
    own_seconds: float
    density: Density | None
    work: float | None
    sites: tuple[SiteReport, ...]
    remarks: tuple[str, ...] = ()
    checks: tuple[Checked, ...] = ()

    @classmethod
    def of_sites(
        cls,
        sites: tuple[SiteReport, ...],
        forwards: int,
        steps: int | None,
        work: float | None,
        remarks: tuple[str, ...] = (),
        checks: tuple[Checked, ...] = (),
    ) -> Report:
        """Sum up the sites."""
        declined: dict[str, int] = {}
        for site in sites:
            for reason, count in site.declined.items():
                declined[reason] = declined.get(reason, 0) + count
        return cls(
            forwards=forwards,
            steps=steps,
            calls=sum(site.calls for site in sites),
            ran=sum(site.ran for site in sites),
            outside=sum(site.outside for site in sites),
            declined=declined,
            seconds=sum(site.seconds for site in sites),
            own_seconds=sum(site.own_seconds for site in sites),
            density=mean_density([(site.density, site.ran) for site in sites if not site.adds]),
            work=work,
            sites=sites,
            remarks=remarks,
            checks=checks,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.ran} of {self.calls} attention calls ran the method in {self.seconds:.3f} s, {self.outside} were "
            f"outside the schedule, {sum(self.declined.values())} declined (model's own attention: "
            f"{self.own_seconds:.3f} s); {self.forwards} denoiser calls, {self.steps or 'unknown'} steps",
        ]
        ran = [site for site in self.sites if site.ran]
        if ran:
            hides = any(not site.adds for site in ran)
            lines.append(f"density: {self.density or ('not known without the data' if hides else ADDS)}")
        if self.work is not None:
            lines.append(f"attention work left: {self.work:.1%} of dense, dense layers and steps included")
        lines += [f"declined {count} calls: {reason}" for reason, count in self.declined.items()]
        if self.checks:
            worst = max(each.error for each in self.checks)
            lines.append(f"first-step check: {len(self.checks)} sites, at most {worst:.2f} from dense attention")
        lines += [f"remark: {remark}" for remark in self.remarks]
        skipped = sum(site.skipped for site in self.sites)
        if skipped:
            lines.append(f"{skipped} forwards of attention layers came without an attention call (caching, guidance)")
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


def _density_text(density: Density | None, unseen: bool, adds: bool) -> str:
    if adds:
        return ADDS
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
