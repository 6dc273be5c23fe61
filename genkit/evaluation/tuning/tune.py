"""``genkit tune``: the fastest schedule of a method that keeps a quality, or the most faithful one of a speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genkit.attention.method import Method
from genkit.errors import UnsupportedError, UsageError, counted
from genkit.evaluation.inspection.look import QUERIES, Look, check_methods
from genkit.evaluation.tuning.budget import Budget
from genkit.evaluation.tuning.ladders import short_names
from genkit.evaluation.tuning.outcome import Measured, Outcome, columns, typical_spread
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
from genkit.evaluation.tuning.store import Store, digest
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
        plain = (len(self.methods) * len(self.groups)).bit_length()
        search = PLANS.bit_length() - 1 + plain + (2 * len(self.methods) if self.baselines else 0)
        return len(self.cases.calibration) * (1 + len(self.groups) + search) + 2 * len(self.cases.held_out)

    def about(self) -> dict[str, Any]:
        """What every run depends on. Prompts, seeds and plans are not among it: they are in the names of results."""
        settings = {k: v for k, v in self.request.settings.to_dict().items() if k not in ("prompt", "seed", "output")}
        return {"model": self.request.model.fingerprint(), "settings": settings}

    def asked(self) -> dict[str, Any]:
        """What else the result depends on, for reports; the budget stands elsewhere."""
        return {
            "methods": [method.describe() for method in self.methods],
            "prompts": self.cases.texts(),
            "seeds": [case.seed for case in (*self.cases.calibration, *self.cases.held_out)],
            "groups": [list(group) for group in self.groups],
            "queries": self.queries,
        }

    @property
    def look_name(self) -> str:
        """The name of what one pass over the calibration prompts tells of the settings."""
        asked = self.asked()
        cases = [case.name for case in self.cases.calibration]
        return f"look-{digest(asked['methods'], cases, asked['groups'], self.queries)}"

    def measured_before(self, store: Store) -> dict[str, int]:
        """What a folder of results has for this tuning already, in numbers of results."""
        dense = {
            kind: sum(store.has(f"dense-{case.name}") for case in cases)
            for kind, cases in (("calibration", self.cases.calibration), ("held out", self.cases.held_out))
        }
        runs = {
            kind: sum(store.count(f"run-{case.name}-") for case in cases)
            for kind, cases in (("calibration", self.cases.calibration), ("held out", self.cases.held_out))
        }
        return {
            "dense calibration runs": dense["calibration"],
            "dense held-out runs": dense["held out"],
            "passes that measure the settings": int(store.has(self.look_name)),
            "runs of plans on calibration prompts": runs["calibration"],
            "runs of plans on held-out prompts": runs["held out"],
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
        look, groups = self._look(), self.tuning.groups
        self._roles = tuple(dict.fromkeys(site["role"] for site in look))
        cells = self._cells(look, [1.0] * len(groups))
        if all(plan.dense for plan in front(cells)):  # known before the probes, which take a run a prompt each
            raise UnsupportedError(
                "no setting executes less than dense attention on a sequence this short: give sparser settings with "
                "--try, a larger size or more frames (genkit inspect tells what is executed)"
            )
        weights = [self._weight(cells, group) for group in range(len(groups))]
        cells = self._cells(look, weights)
        plans = _spread([plan for plan in front(cells) if not plan.dense])
        outcome = Outcome(self.tuning)
        if self.tuning.baselines:
            late = next((n for n, (start, _) in enumerate(groups) if 4 * start >= groups[-1][1]), 0)
            for number in range(len(self.tuning.methods)):
                for begin in sorted({0, late}):
                    self._try(uniform(cells, number, range(begin, len(groups))), self._plain(number, begin), outcome)
        self._search([(plan, f"plan {at} of {len(plans)}") for at, plan in enumerate(plans, 1)], outcome)
        self._search(self._plain_front(cells), outcome)
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

        return self.store.frames(f"dense-{case.name}", make)

    def _look(self) -> list[dict[str, Any]]:
        """Error and density of every setting by layer and group of steps, from the dense runs of the calibration
        prompts: one pass."""

        def make() -> list[dict[str, Any]]:
            starts = [start for start, _ in self.tuning.groups]
            self.tell(
                f"dense runs of {counted(len(self.tuning.cases.calibration), 'prompt')}, settings measured beside them"
            )
            options: dict[str, Any] = {"steps": starts, "queries": self.tuning.queries, "distances": False}
            if any(method.across_steps for method in self.tuning.methods):  # what serves later steps errs there
                options |= {"steps": "0:", "restarts": starts}
            with Look(self.session.pipeline, self.tuning.methods, **options) as look:
                for case in self.tuning.cases.calibration:  # a look needs the runs themselves
                    self.store.frames(f"dense-{case.name}", partial(self._generate, case), anew=True)
            return [_site(site, self.tuning.groups, self.tuning.methods) for site in look.result().sites]

        return self.store.value(self.tuning.look_name, make)

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
        """What errors in a group of steps do to the output: runs with the sparsest setting there alone. On all
        calibration prompts: what early steps decide differs from prompt to prompt."""
        total = {name: sum(o[name].cost for o in cells.values() if name in o) for o in cells.values() for name in o}
        sparse = min((name for name in total if name != DENSE), key=lambda name: total[name])
        probe = {cell: options for cell, options in cells.items() if sparse in options}
        plan = uniform(probe, sparse, [group])
        steps = ":".join(map(str, self.tuning.groups[group]))
        psnr = self._measured(plan, f"probe of steps {steps}", "psnr").mean("psnr")
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

    def _measured(self, plan: Plan, title: str, metric: str | None = None) -> Measured:
        """A plan on all calibration prompts, with ``metric`` for sure; None = the budget's."""
        rows = []
        for number, case in enumerate(self.tuning.cases.calibration):

            def make(number: int = number) -> dict[str, float]:
                self.tell(f"{title}: calibration prompt {number + 1}")
                return self._run(plan, "calibration", number)

            rows.append(self._value(self._run_name(plan, case), make, metric or self.tuning.budget.metric))
        parts = parts_of(plan, self.tuning.methods, self.tuning.groups)
        return Measured(plan, parts, title, columns(rows))

    def _try(self, plan: Plan, title: str, outcome: Outcome) -> Measured:
        """A plan, measured and noted once."""
        parts = parts_of(plan, self.tuning.methods, self.tuning.groups)
        for each in outcome.measured:
            if each.parts == parts:
                return each
        outcome.measured.append(self._measured(plan, title))
        return outcome.measured[-1]

    def _plain(self, number: int, begin: int) -> str:
        """One setting on all layers from a group of steps on, in words."""
        name, step = short_names(self.tuning.methods)[number], self.tuning.groups[begin][0]
        return f"{name} from step {step}" if step else f"{name} everywhere"

    def _plain_front(self, cells: dict[Cell, dict[int, Option]]) -> list[tuple[Plan, str]]:
        """Of plans with one setting on all layers from some step on those that no other one is predicted to beat in
        both error and cost, the densest first: errors of plans that mix settings add up less well than is predicted."""
        groups = range(len(self.tuning.groups))
        served = {number for number in range(len(self.tuning.methods)) if all(number in o for o in cells.values())}
        every = [
            (uniform(cells, number, groups[begin:]), self._plain(number, begin))
            for number in served
            for begin in groups
        ]
        every.sort(key=lambda item: (-item[0].cost, item[0].error))
        kept: list[tuple[Plan, str]] = []
        for plan, title in every:
            while kept and kept[-1][0].error >= plan.error:
                kept.pop()  # cheaper and no worse
            kept.append((plan, title))
        return kept

    def _run_name(self, plan: Plan, case: Case) -> str:
        """The name of the numbers of a plan on a prompt: that of what runs, whatever it was chosen among."""
        parts = parts_of(plan, self.tuning.methods, self.tuning.groups)
        return f"run-{case.name}-{digest([(method.describe(), at) for method, at in parts])}"

    def _value(self, name: str, make: Callable[[], dict[str, float]], metric: str) -> dict[str, float]:
        """Numbers of a run; made anew where those that are there lack a metric: its package came later."""
        found = self.store.value(name, make)
        return found if metric in found else self.store.value(name, make, anew=True)

    def _best(self, measured: list[Measured]) -> Measured | None:
        """Of everything that was run and meets the budget: the fastest, or of a speed the most faithful."""
        budget = self.tuning.budget
        good = [each for each in measured if self._surely(each, measured)]
        return max(good, key=lambda each: each.mean("psnr" if budget.fast else "speedup"), default=None)

    def _surely(self, plan: Measured, measured: Sequence[Measured]) -> bool:
        """Whether a plan is likely to keep the budget on the held-out prompts."""
        budget, further = self.tuning.budget, len(self.tuning.cases.held_out)
        typical = typical_spread(measured, budget.metric, plan.mean(budget.metric))
        return budget.surely_met(plan.values[budget.metric], further, typical)

    def _search(self, plans: Sequence[tuple[Plan, str]], outcome: Outcome) -> None:
        """Run plans by halving, towards the sparsest that keeps the quality, or the densest that is as fast.

        Args:
            plans: with their titles, from the densest to the sparsest.
        """
        budget = self.tuning.budget

        def good(at: int) -> bool:
            return self._surely(self._try(*plans[at], outcome), outcome.measured)

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

            rows.append(self._value(self._run_name(chosen.plan, case), make, self.tuning.budget.metric))
            dense.append(_judged(case, self._dense("held-out", number, case)))
        outcome.held_out = columns(rows)
        outcome.dense = {name: [row[name] for row in dense] for name in dense[0]}


def _check_metric(metric: str, height: int | None, width: int | None) -> None:
    from genkit.evaluation.comparison.perceptual import LEAST, why_not
    from genkit.evaluation.metrics import SSIM_WINDOW

    least = {"ssim": SSIM_WINDOW, "st_lpips": LEAST}.get(metric, 1)
    small = min(height or least, width or least)
    if small < least:
        raise UsageError(f"{metric} needs frames of at least {least}x{least} pixels, these have {small}")
    if metric == "st_lpips" and why_not() is not None:
        raise UnsupportedError(f"--budget st_lpips: {why_not()}")


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


def file_names(recipe: Path, missed: int | None = None) -> tuple[Path, Path, Path]:
    """The report's Markdown, JSON and picture beside a recipe; of a try that missed the budget, by its number."""
    endings = (".md", ".json", ".png")
    text, numbers, picture = (
        recipe.with_suffix(ending if missed is None else f".missed-{missed}{ending}") for ending in endings
    )
    return text, numbers, picture
