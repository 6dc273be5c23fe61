"""``genkit tune``: the fastest schedule of a method that keeps a quality, or the most faithful one of a speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genkit.attention.method import Method
from genkit.errors import UnsupportedError, UsageError
from genkit.evaluation.inspection.look import QUERIES, Look, check_methods
from genkit.evaluation.tuning.budget import Budget
from genkit.evaluation.tuning.ladders import short_names
from genkit.evaluation.tuning.plans import (
    DENSE,
    Cell,
    Option,
    Plan,
    front,
    parts_of,
    patched,
    step_groups,
    uniform,
)
from genkit.evaluation.tuning.prompts import Case, Cases
from genkit.evaluation.tuning.store import Store
from genkit.patching.parts import Part
from genkit.patching.targets import find_denoisers
from genkit.pipelines.resolve import Request, resolve
from genkit.pipelines.session import Session

#: Plans of the front that are searched among: more would differ by less than the runs can tell.
PLANS = 32


@dataclass(frozen=True)
class TunePlan:
    """A tuning that passed every check that needs no weights.

    Args:
        request: of a dense run with the first prompt. budget, methods, cases: what is asked for, chosen among, run.
        groups: ranges of steps that share their settings. queries: sampled per call.
        baselines: also run every setting everywhere, and after a quarter of the steps, to compare with.
    """

    request: Request
    budget: Budget
    methods: tuple[Method, ...]
    cases: Cases
    groups: tuple[tuple[int, int], ...]
    queries: int = QUERIES
    baselines: bool = False

    @classmethod
    def of(
        cls, settings: Any, budget: Budget, methods: Sequence[Method], cases: Cases, queries: int = QUERIES,
        baselines: bool = False,
    ) -> TunePlan:  # fmt: skip
        """Check everything.

        Args:
            settings: of ``genkit generate`` without attention; its prompt and seed are replaced.

        Raises:
            UsageError, UnsupportedError: what a run would refuse, a method that does not fit, an unknown number of
                steps, frames too small for the budget's metric, or a metric whose package is missing.
        """
        request = resolve(settings.replace(prompt=cases.calibration[0].prompt, seed=cases.calibration[0].seed))
        if request.attention is not None:
            raise UsageError("tuning begins with dense attention: leave --attention and --recipe out")
        if request.steps is None:
            raise UsageError("give --steps: only the pipeline knows how many steps a run of this model has")
        check_methods(request.model.outline, methods)
        check_one_kind(request.model.outline, methods[0])
        _check_metric(budget.metric, request.settings.height, request.settings.width)
        for case in (*cases.calibration, *cases.held_out):
            request.read(request.settings.replace(prompt=case.prompt))
        return cls(request, budget, tuple(methods), cases, tuple(step_groups(request.steps)), queries, baselines)

    @property
    def runs(self) -> int:
        """About how many runs it takes, dense ones included."""
        search = max(1, PLANS.bit_length() - 1) + (2 * len(self.methods) if self.baselines else 0)
        return len(self.cases.calibration) * (1 + search) + len(self.groups) + 2 * len(self.cases.held_out)

    def about(self) -> dict[str, Any]:
        """What measured numbers depend on; the budget is not among it, so that another one goes on with the same."""
        settings = {k: v for k, v in self.request.settings.to_dict().items() if k not in ("prompt", "seed", "output")}
        return {
            "model": self.request.model.fingerprint(),
            "settings": settings,
            "methods": [method.describe() for method in self.methods],
            "prompts": self.cases.texts(),
            "seeds": [case.seed for case in (*self.cases.calibration, *self.cases.held_out)],
            "groups": [list(group) for group in self.groups],
            "queries": self.queries,
        }


def check_one_kind(target: Any, method: Method) -> None:
    """Refuse a model in which a method serves several kinds of attention, whose layers are numbered apart.

    Raises:
        UnsupportedError: such a model.
    """
    roles = dict.fromkeys(
        found.role for denoiser in find_denoisers(target) for found in denoiser.sites_for(Part(method))
    )
    if len(roles) > 1:
        raise UnsupportedError(
            f"{method.name} works on {' and '.join(roles)} attention of this model, whose layers are numbered apart; "
            f"tuning is for models with one kind: write a recipe with roles by hand"
        )


@dataclass
class Measured:
    """A plan that was run.

    Args:
        plan: with what was predicted. parts: methods and schedules. title: in words.
        values: metric -> a number per calibration prompt.
    """

    plan: Plan
    parts: list[tuple[Method, dict[str, str]]]
    title: str
    values: dict[str, list[float]]

    def mean(self, metric: str) -> float:
        """Mean over the prompts."""
        return float(np.mean(self.values[metric]))


@dataclass
class Outcome:
    """What a tuning found.

    Args:
        tuning: what was asked for. measured: every plan that was run on the calibration prompts. chosen: of them; None
            when none of those tried meets the budget. held_out: of the chosen one, metric -> a number per held-out
            prompt. dense: the same of dense runs, of metrics that they have. made: versions and machine.
    """

    tuning: TunePlan
    measured: list[Measured] = field(default_factory=list)
    chosen: Measured | None = None
    held_out: dict[str, list[float]] = field(default_factory=dict)
    dense: dict[str, list[float]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the chosen plan meets the budget on the held-out prompts."""
        budget = self.tuning.budget
        return self.chosen is not None and budget.met(self.held_out[budget.metric])

    @property
    def changes(self) -> dict[str, list[float]]:
        """What the chosen plan gains over dense attention on the same held-out prompts, of metrics that both have."""
        return {
            name: [mine - theirs for mine, theirs in zip(self.held_out[name], values, strict=True)]
            for name, values in self.dense.items()
            if name in self.held_out
        }

    def best(self) -> Measured:
        """Of what was run on the calibration prompts, the plan that is best in the budget's metric."""
        budget = self.tuning.budget
        return max(self.measured, key=lambda each: budget.sign * each.mean(budget.metric))


class Tuner:
    """Measures, searches, confirms.

    Args:
        tuning: what to do. store: where results are kept. tell: called with a line now and then.
    """

    def __init__(self, tuning: TunePlan, store: Store, tell: Callable[[str], None] = lambda line: None):
        self.tuning, self.store, self.tell = tuning, store, tell
        self._session: Session | None = None
        self._roles: tuple[str, ...] = ()

    def run(self) -> Outcome:
        """Tune.

        Raises:
            UnsupportedError: a method that serves no layer in a run, or whose density is unknown.
        """
        look = self._look()
        self._roles = tuple(dict.fromkeys(site["role"] for site in look))
        cells = self._cells(look, [1.0] * len(self.tuning.groups))
        weights = [self._weight(cells, group) for group in range(len(self.tuning.groups))]
        cells = self._cells(look, weights)
        plans = _spread([plan for plan in front(cells) if not plan.dense])
        if not plans:
            raise UnsupportedError(
                "no setting executes less than dense attention on a sequence this short: give sparser settings with "
                "--try, a larger size or more frames (genkit inspect tells what is executed)"
            )
        outcome = Outcome(self.tuning)
        if self.tuning.baselines:
            late = [n for n, (start, stop) in enumerate(self.tuning.groups) if 4 * start >= self.tuning.groups[-1][1]]
            for number, name in enumerate(short_names(self.tuning.methods)):
                plan = uniform(cells, number)
                outcome.measured.append(self._measured(plan, f"{name} everywhere"))
                if late:
                    from_then = f"{name} from step {self.tuning.groups[late[0]][0]}"
                    outcome.measured.append(self._measured(uniform(cells, number, late), from_then))
        self._search(plans, outcome.measured)
        outcome.chosen = self._best(outcome.measured)
        if outcome.chosen is not None:
            self._confirm(outcome)
        outcome.made = self.session.made
        return outcome

    @property
    def session(self) -> Session:
        """The loaded model."""
        if self._session is None:
            self._session = Session(self.tuning.request)
            self._session.load()
        return self._session

    def _generate(self, case: Case) -> np.ndarray:
        """Frames uint8 (T, H, W, 3) of one run as the pipeline is now."""
        settings = self.tuning.request.settings.replace(prompt=case.prompt, seed=case.seed)
        return self.session.run(settings).frames

    def _dense(self, kind: str, number: int, case: Case) -> np.ndarray:
        def make() -> np.ndarray:
            self.tell(f"dense run of {kind} prompt {number + 1}")
            return self._generate(case)

        return self.store.frames(f"dense-{kind}-{number}", make)

    def _look(self) -> list[dict[str, Any]]:
        """Error and density of every setting by layer and group of steps, from the dense runs of the calibration
        prompts: one pass."""

        def make() -> list[dict[str, Any]]:
            starts = [start for start, _ in self.tuning.groups]
            self.tell(f"dense runs of {len(self.tuning.cases.calibration)} prompts, settings measured beside them")
            options: dict[str, Any] = {"steps": starts, "queries": self.tuning.queries, "distances": False}
            if any(method.across_steps for method in self.tuning.methods):  # what serves later steps errs there
                options |= {"steps": "0:", "restarts": starts}
            with Look(self.session.pipeline, self.tuning.methods, **options) as look:
                for number, case in enumerate(self.tuning.cases.calibration):
                    self.store.frames(f"dense-calibration-{number}", partial(self._generate, case))
            return [_site(site, self.tuning.groups, self.tuning.methods) for site in look.result().sites]

        if not self.store.has("look"):
            for number in range(len(self.tuning.cases.calibration)):  # a look needs the runs themselves
                (self.store.folder / f"dense-calibration-{number}.npz").unlink(missing_ok=True)
        return self.store.value("look", make)

    def _cells(self, look: list[dict[str, Any]], weights: Sequence[float]) -> dict[Cell, dict[int, Option]]:
        """Options of every layer and group of steps; layers of one number (in several denoisers) together."""
        groups = self.tuning.groups
        found: dict[Cell, dict[int, Option]] = {}
        for site in look:
            for group, (start, stop) in enumerate(groups):
                if not site["steps"][group]:
                    continue
                work = site["operations"] * (stop - start)
                here = found.setdefault((site["layer"], group), {DENSE: Option(0.0, 0.0)})
                here[DENSE] = Option(here[DENSE].cost + work, 0.0)
                for name, (error, density) in site["steps"][group].items():
                    before = here.get(int(name), Option(0.0, 0.0))
                    added = weights[group] * error**2 * (stop - start)
                    here[int(name)] = Option(before.cost + work * density, before.error + added)
        if not any(len(options) > 1 for options in found.values()):
            raise UnsupportedError("the method served no attention call of this run; genkit inspect tells why")
        return found

    def _weight(self, cells: dict[Cell, dict[int, Option]], group: int) -> float:
        """What errors in a group of steps do to the output: one run with the sparsest setting there alone."""
        total = {name: sum(o[name].cost for o in cells.values() if name in o) for o in cells.values() for name in o}
        sparse = min((name for name in total if name != DENSE), key=lambda name: total[name])
        probe = {cell: options for cell, options in cells.items() if sparse in options}
        plan = uniform(probe, sparse, [group])

        def make() -> dict[str, float]:
            self.tell(f"probe of steps {':'.join(map(str, self.tuning.groups[group]))}")
            return self._run(plan, "calibration", 0)

        psnr = self.store.value(f"probe-{group}", make)["psnr"]
        return float(10 ** (-psnr / 10) / max(plan.error, 1e-12))

    def _run(self, plan: Plan, kind: str, number: int) -> dict[str, float]:
        """Numbers of one prompt under a plan."""
        from genkit.evaluation.comparison.perceptual import LEAST, st_lpips_frames, why_not
        from genkit.evaluation.metrics import psnr, ssim
        from genkit.patching import Watch, patch

        cases = self.tuning.cases.calibration if kind == "calibration" else self.tuning.cases.held_out
        case = cases[number]
        dense = self._dense(kind, number, case)
        parts = patched(parts_of(plan, self.tuning.methods, self.tuning.groups))
        pipeline = self.session.pipeline
        with Watch(pipeline) as watch, patch(pipeline, parts) if parts else nullcontext():
            frames = self._generate(case)
            cost = watch.cost(self._roles)
        if not cost.executed:
            raise UnsupportedError("the method does not tell how much it executes, so its speed is not known")
        found = {"psnr": psnr(frames, dense), "speedup": cost.dense / cost.executed}
        if min(frames.shape[1:3]) >= 11:
            found["ssim"] = ssim(frames, dense)
        if min(frames.shape[1:3]) >= LEAST and why_not() is None:
            found["st_lpips"] = float(st_lpips_frames(frames, dense).mean())
        return found | _judged(case, frames)

    def _measured(self, plan: Plan, title: str) -> Measured:
        """A plan on all calibration prompts."""
        rows = []
        for number in range(len(self.tuning.cases.calibration)):

            def make(number: int = number) -> dict[str, float]:
                self.tell(f"{title}: calibration prompt {number + 1}")
                return self._run(plan, "calibration", number)

            rows.append(self._value(f"run-{plan.name}-calibration-{number}", make))
        parts = parts_of(plan, self.tuning.methods, self.tuning.groups)
        return Measured(plan, parts, title, _columns(rows))

    def _value(self, name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Numbers of a run; made anew where those that are there lack the budget's metric: its package came later."""
        found = self.store.value(name, make)
        return found if self.tuning.budget.metric in found else self.store.value(name, make, anew=True)

    def _best(self, measured: list[Measured]) -> Measured | None:
        """Of everything that was run and meets the budget: the fastest, or of a speed the most faithful."""
        budget, further = self.tuning.budget, len(self.tuning.cases.held_out)
        typical = _typical(measured, budget.metric)
        good = [each for each in measured if budget.surely_met(each.values[budget.metric], further, typical)]
        return max(good, key=lambda each: each.mean("psnr" if budget.fast else "speedup"), default=None)

    def _search(self, plans: list[Plan], measured: list[Measured]) -> None:
        """Run plans by halving, towards the sparsest that keeps the quality, or the densest that is as fast."""
        budget, further = self.tuning.budget, len(self.tuning.cases.held_out)
        tried: dict[int, Measured] = {}

        def good(at: int) -> bool:
            if at not in tried:
                tried[at] = self._measured(plans[at], f"plan {at + 1} of {len(plans)}")
                measured.append(tried[at])
            return budget.surely_met(tried[at].values[budget.metric], further, _typical(measured, budget.metric))

        low, high = (-1, len(plans)) if not budget.fast else (len(plans), -1)
        while abs(high - low) > 1:  # low is good or the end that is, high is not
            middle = (low + high) // 2
            if good(middle):
                low = middle
            else:
                high = middle

    def _confirm(self, outcome: Outcome) -> None:
        """The chosen plan, and dense attention, on prompts that had no part in the choice."""
        chosen, rows, dense = outcome.chosen, [], []
        assert chosen is not None
        for number, case in enumerate(self.tuning.cases.held_out):

            def make(number: int = number) -> dict[str, float]:
                self.tell(f"chosen plan: held-out prompt {number + 1}")
                return self._run(chosen.plan, "held-out", number)

            rows.append(self._value(f"run-{chosen.plan.name}-held-out-{number}", make))
            dense.append(_judged(case, self._dense("held-out", number, case)))
        outcome.held_out = _columns(rows)
        outcome.dense = {name: [row[name] for row in dense] for name in dense[0]}


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Metric -> a number per prompt, of metrics that every prompt has."""
    return {name: [row[name] for row in rows] for name in rows[0] if all(name in row for row in rows)}


def _check_metric(metric: str, height: int | None, width: int | None) -> None:
    from genkit.evaluation.comparison.perceptual import LEAST, why_not
    from genkit.evaluation.metrics import SSIM_WINDOW

    least = {"ssim": SSIM_WINDOW, "st_lpips": LEAST}.get(metric, 1)
    small = min(height or least, width or least)
    if small < least:
        raise UsageError(f"{metric} needs frames of at least {least}x{least} pixels, these have {small}")
    if metric == "st_lpips" and why_not() is not None:
        raise UnsupportedError(f"--budget st_lpips: {why_not()}")


def _typical(measured: Sequence[Measured], metric: str) -> float:
    """The spread over prompts (standard deviation) of the plans that were run: its root mean square."""
    spreads = [np.var(each.values[metric], ddof=1) for each in measured if len(each.values[metric]) > 1]
    return float(np.sqrt(np.mean(spreads))) if spreads else 0.0


def _judged(case: Case, frames: np.ndarray) -> dict[str, float]:
    """Whether the judge finds a clip right in everything; nothing without a scene to compare with."""
    if case.scene is None:
        return {}
    from genkit.evaluation.toy import judge_clips

    return {"judge": float(judge_clips([case.scene], frames[None])[1][0]["all"])}


def _site(site: Any, groups: Sequence[tuple[int, int]], methods: Sequence[Method]) -> dict[str, Any]:
    """What is kept of a layer: by group of steps, setting -> (error, executed density), over its steps looked at: the
    root of the mean square, and the mean."""
    steps = []
    for start, stop in groups:
        here = {}
        for number, method in enumerate(methods):
            found = [each.methods.get(method.describe()) for each in site.steps if start <= each.step < stop]
            known = [each for each in found if each is not None]
            if not known:
                continue
            if any(each.executed is None for each in known):
                raise UnsupportedError(f"{method.describe()} does not tell how much it executes")
            error = float(np.sqrt(np.mean([each.error**2 for each in known])))
            here[str(number)] = (error, float(np.mean([each.executed for each in known])))
        steps.append(here)
    return {"name": site.name, "role": site.role, "layer": site.layer, "operations": site.operations, "steps": steps}


def _spread(plans: list[Plan]) -> list[Plan]:
    """At most :data:`PLANS` of the plans, evenly over their costs, the first and the last among them."""
    if len(plans) <= PLANS:
        return plans
    costs = np.array([plan.cost for plan in plans])
    wanted = np.linspace(costs[0], costs[-1], PLANS)
    chosen = sorted({int(np.abs(costs - cost).argmin()) for cost in wanted})
    return [plans[number] for number in chosen]


def file_names(recipe: Path) -> tuple[Path, Path, Path]:
    """The report's Markdown, JSON and picture beside a recipe."""
    return recipe.with_suffix(".md"), recipe.with_suffix(".json"), recipe.with_suffix(".png")
