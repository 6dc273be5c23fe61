"""What a comparison found: every run with its numbers, and means with intervals over prompts and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from genkit.errors import counted
from genkit.evaluation.comparison.bands import BANDS, band
from genkit.evaluation.comparison.intervals import Interval, interval, ratio
from genkit.evaluation.comparison.numbers import METRICS, Numbers
from genkit.evaluation.comparison.sets import kernel_distance
from genkit.patching.meter import AttentionCost


@dataclass
class Found:
    """One run of one variant.

    Args:
        prompt, seed: what was asked.
        seconds: of the pipeline call. peak: bytes, see :class:`genkit.evaluation.comparison.memory.Peak`.
        attention: seconds, calls and operations of the denoiser's attention; None where they cannot be watched.
        report: of the attention patch. numbers: against the baseline's run; None for the baseline or without one.
        judged: accuracy by the toy world's judge, 0 to 1. file: its lossless output, relative to the report.
        look: features of the output for the distance of sets, see :mod:`genkit.evaluation.comparison.sets`.
    """

    prompt: str
    seed: int
    seconds: float
    peak: int | None = None
    attention: AttentionCost | None = None
    report: dict[str, Any] | None = None
    numbers: Numbers | None = None
    judged: float | None = None
    file: str | None = None
    look: np.ndarray | None = None

    @property
    def values(self) -> dict[str, float]:
        """All distances, the judge's share in percent among them."""
        found = {} if self.numbers is None else dict(self.numbers.values)
        return found if self.judged is None else {**found, "judged": 100 * self.judged}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        cost = self.attention
        shares = (None, None) if cost is None else cost.density
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "seconds": self.seconds,
            "attention_seconds": None if cost is None else cost.seconds,
            "peak_bytes": self.peak,
            "attention_flops": None if cost is None else {
                "dense": cost.dense, "computed": cost.computed, "executed": cost.executed
            },
            "density": None if cost is None else {"computed": shares[0], "executed": shares[1]},
            "values": self.values,
            "band": band(self.values),
            "per_frame": {} if self.numbers is None else self.numbers.frames,
            "per_step": {} if self.numbers is None else self.numbers.steps,
            "missing": {} if self.numbers is None else self.numbers.missing,
            "file": self.file,
            "attention": self.report,
        }  # fmt: skip


@dataclass
class Row:
    """A variant with its runs.

    Args:
        name, words: how it is called, and its settings in a line.
        failed: why it gave up; its earlier runs are kept.
        told: what the user should know of it.
    """

    name: str
    words: str
    baseline: bool = False
    runs: list[Found] = field(default_factory=list)
    failed: str | None = None
    told: list[str] = field(default_factory=list)

    def find(self, prompt: str, seed: int) -> Found | None:
        """The run of a prompt and seed."""
        return next((run for run in self.runs if (run.prompt, run.seed) == (prompt, seed)), None)

    def summary(self, baseline: Row | None) -> dict[str, Interval]:
        """Means with intervals: every metric, the costs, and their paired ratios to the baseline's."""
        columns: dict[str, list[float]] = {}
        for run in self.runs:
            cost = run.attention
            told = {"seconds": run.seconds, **run.values}
            if run.peak is not None:
                told["peak_bytes"] = float(run.peak)
            if cost is not None:
                told["attention_seconds"] = cost.seconds
                shares = {"computed": cost.density[0], "executed": cost.density[1]}
                told |= {f"density_{name}": share for name, share in shares.items() if share is not None}
                flops = {"dense": cost.dense, "computed": cost.computed, "executed": cost.executed}
                told |= {f"flops_{name}": count for name, count in flops.items() if count is not None}
            for name, value in told.items():
                columns.setdefault(name, []).append(value)
        found = {name: interval(values) for name, values in columns.items()}
        if baseline is not None and baseline is not self:
            found |= self._ratios(baseline)
            pairs = [(run, baseline.find(run.prompt, run.seed)) for run in self.runs]
            found["kernel_distance"] = _distance([(run, its) for run, its in pairs if its is not None])
        return {name: value for name, value in found.items() if value is not None}

    def _ratios(self, baseline: Row) -> dict[str, Interval | None]:
        pairs = [(run, baseline.find(run.prompt, run.seed)) for run in self.runs]
        both = [(run, its) for run, its in pairs if its is not None]
        costs = [(run.attention, its.attention) for run, its in both]
        watched = [(mine, its) for mine, its in costs if mine is not None and its is not None]
        known = [(mine.executed, its.executed) for mine, its in watched]
        flops = [(mine, its) for mine, its in known if mine is not None and its is not None]
        judged = [(run.judged, its.judged) for run, its in both]
        points = [100 * (mine - its) for mine, its in judged if mine is not None and its is not None]
        return {
            "speedup": ratio([its.seconds for _, its in both], [run.seconds for run, _ in both]),
            "attention_speedup": ratio([its.seconds for _, its in watched], [mine.seconds for mine, _ in watched]),
            "flops_saved": ratio([its for _, its in flops], [mine for mine, _ in flops]),
            "judged_change": interval(points),
        }

    def bands(self) -> dict[str, int]:
        """How many runs are in each band."""
        found = [band(run.values) for run in self.runs]
        return {name: found.count(name) for name in BANDS if name in found}


#: Share of what a prompt says below which an output of the baseline is nothing to be compared with.
_HALF = 0.5


@dataclass
class Comparison:
    """All rows of a comparison, the baseline first.

    Args:
        prompts, seeds: what was asked: every prompt with every seed.
        scale: distances of the baseline from itself at other seeds, one mapping a pair; empty with a single seed.
        about: machine, versions, command, settings; what the report's foot tells.
        finished: False when it was interrupted.
        masks: pictures of what methods see, PNG bytes by variant and method.
    """

    rows: list[Row]
    prompts: list[str]
    seeds: list[int]
    scale: list[dict[str, float]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    told: list[str] = field(default_factory=list)
    masks: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)

    @property
    def baseline(self) -> Row:
        """The row that the others are compared with."""
        return self.rows[0]

    @property
    def failed(self) -> list[Row]:
        """Rows that gave up."""
        return [row for row in self.rows if row.failed is not None]

    def remarks(self) -> list[str]:
        """What a reader should know of the whole comparison, one line each: what its loop met, and whether the baseline
        shows what was asked for."""
        judged = [run.judged for run in self.baseline.runs if run.judged is not None]
        bad = sum(value < _HALF for value in judged)
        if not bad:
            return self.told
        line = (
            f"{self.baseline.name}: in {bad} of {counted(len(judged), 'output')} the judge sees less than "
            "half of what the prompt "
            f"asks for, and likeness to those says little: take a size that the model draws, other prompts or seeds"
        )
        return [*self.told, line]

    def summary(self, name: str) -> dict[str, Interval]:
        """Means with intervals of the variant of a name."""
        return next(row for row in self.rows if row.name == name).summary(self.baseline)

    def another_seed(self) -> dict[str, Interval]:
        """Means of the distances that another seed alone makes."""
        names = dict.fromkeys(name for values in self.scale for name in values)
        found = {name: interval([values[name] for values in self.scale if name in values]) for name in names}
        runs = self.baseline.runs  # seed after seed of a prompt
        found["kernel_distance"] = _distance(
            [(run, before) for before, run in itertools.pairwise(runs) if before.prompt == run.prompt]
        )
        return {name: value for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; ``settings``, ``command`` and ``made_with`` as in every output of genkit."""
        return {
            **self.about,
            "finished": self.finished,
            "baseline": self.baseline.name,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "told": self.remarks(),
            "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
            "another_seed": _plain(self.another_seed()),
            "variants": [
                {
                    "name": row.name,
                    "what": row.words,
                    "failed": row.failed,
                    "told": row.told,
                    "bands": row.bands(),
                    "summary": _plain(row.summary(self.baseline)),
                    "runs": [run.to_dict() for run in row.runs],
                }
                for row in self.rows
            ],
        }

    def lines(self) -> list[list[str]]:
        """The table that the terminal shows: a header, then a line a variant."""
        summaries = {row.name: row.summary(self.baseline) for row in self.rows}
        shown = [name for name in METRICS if any(name in found for found in summaries.values())]
        table = [["variant", "seconds", "in attention", "FLOPs", *(METRICS[name].title for name in shown), "band"]]
        for row in self.rows:
            found = summaries[row.name]
            cells = [row.name, cell(found.get("seconds"), 2), cell(found.get("attention_seconds"), 2)]
            saved = found.get("flops_saved")
            cells.append("" if saved is None else f"1/{saved.mean:.2f}")
            cells += [cell(found.get(name), METRICS[name].digits) for name in shown]
            table.append([*cells, "failed" if row.failed else ", ".join(f"{n} {b}" for b, n in row.bands().items())])
        return table


def cell(value: Interval | None, digits: int) -> str:
    """A mean with half its interval, as a cell of a table."""
    if value is None:
        return ""
    reach = "" if value.high is None else f" ± {value.high - value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f}{reach}"


def _distance(pairs: Sequence[tuple[Found, Found]]) -> Interval | None:
    """The kernel distance of paired runs; None where the outputs have no features."""
    known = [(run.look, its.look, run.prompt) for run, its in pairs if run.look is not None and its.look is not None]
    if not known:
        return None
    mine, its, prompts = zip(*known, strict=True)
    return kernel_distance(np.stack(mine), np.stack(its), prompts)


def _plain(found: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in found.items()}
