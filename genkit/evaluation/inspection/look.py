"""Looking at a pipeline's attention while it runs, on samples of queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.copies import read_rows, site_for
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.evaluation.inspection.result import AttentionLook, MethodLook, SiteLook, StepLook
from genkit.evaluation.inspection.strip import Against, Energy, Sample
from genkit.evaluation.inspection.taker import Taker
from genkit.patching.handle import patch
from genkit.patching.meter import operations
from genkit.patching.parts import Part
from genkit.patching.schedule import parse_spans, resolve
from genkit.patching.targets import find_denoisers, fits_nowhere

QUERIES = 64
#: Steps that are looked at when nobody names some.
STEPS = 8


def sites_of(target: Any) -> list[str]:
    """Names of the attention layers of a pipeline, model or outline that can be looked at.

    Raises:
        UnsupportedError: there are none, or the model is unknown.
    """
    part, names = Part(Taker(_nothing)), []
    denoisers = find_denoisers(target)
    for denoiser in denoisers:
        names += [denoiser.prefix + found.path for found in denoiser.sites_for(part)]
    if not names:
        has = dict.fromkeys(role for denoiser in denoisers for role in denoiser.roles)
        raise UnsupportedError(
            f"{', '.join(denoiser.family.name for denoiser in denoisers)} has no self or joint attention on a token "
            f"grid to look at, only {', '.join(has)}"
        )
    return names


def chosen_sites(target: Any, patterns: Iterable[str]) -> list[str]:
    """The layers that patterns (``blocks.*.attn1``) name; all without any.

    Raises:
        UsageError: a pattern that names none; the message lists what there is.
    """
    names, patterns = sites_of(target), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(explain("site", pattern, names))
    return [name for name in names if not patterns or any(fnmatchcase(name, each) for each in patterns)]


def _nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> None:
    """Take nothing."""


@dataclass
class _Seen:
    """What was added up of a site, by step."""

    site: Site
    operations: float
    energy: dict[int | None, Energy] = field(default_factory=dict)
    against: dict[int | None, dict[Method, Against]] = field(default_factory=dict)


class Look:
    """Looks at the attention of a pipeline's runs while they compute densely. A context manager; outputs do not change.

    Of every chosen layer and step a sample of the grid's queries is taken; of guidance the half with the prompt, where
    the model calls them one by one or its record tells the halves (UNets of pictures do not: there both count). Whole
    softmax rows say how attention mass falls off with distance in frames and within the frame, and how few keys hold
    most of it; methods are run on the same queries, keys and values and compared. Several runs are averaged.

    Args:
        target: a Diffusers pipeline or a bare denoiser.
        methods: to compare with dense attention: names for the result -> method, or methods, named by their settings.
        sites: patterns of layer names such as ``blocks.*.attn1``; None = all self and joint attention on a grid.
        steps: as in :class:`genkit.Schedule`; None = at most 8, spread over the run.
        queries: sampled per call, at most.
        restarts: steps at which methods that use earlier steps (``across_steps``) begin anew, as where a schedule
            begins to cover them. They follow all other steps too, and are compared at those looked at.
        distances: False leaves the energy by distance and the sparsity out and compares methods only.

    Raises:
        UnsupportedError: no attention on a token grid, a method that fits no layer of it, or an unknown model.
        UsageError: a pattern that names no layer, numbers out of range.

    Cost: queries / tokens of a dense call for every call looked at, and for each method one call of its own. Memory:
    a strip of at most 64 MiB and what a method needs; never a map of all pairs.

    Example:
        >>> with genkit.Look(pipe, [genkit.Radial()]) as look:  # doctest: +SKIP
        ...     pipe("a red circle moves right")
        >>> look.result().recall("radial()")  # doctest: +SKIP
    """

    def __init__(
        self,
        target: Any,
        methods: dict[str, Method] | Sequence[Method] = (),
        *,
        sites: Iterable[str] | None = None,
        steps: Any = None,
        queries: int = QUERIES,
        distances: bool = True,
        restarts: Iterable[int] = (),
    ):
        if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
            raise UsageError(explain("queries", queries, "a whole number from 1"))
        named = methods if isinstance(methods, dict) else {method.describe(): method for method in methods}
        self.methods, self.queries, self.distances = dict(named), queries, distances
        self._names = frozenset(chosen_sites(target, () if sites is None else sites))
        self._spans = parse_spans("steps", steps)
        self._restarts, self._restarted = frozenset(restarts), (-1, -1)
        check_methods(target, self.methods.values())
        self._caches = {method: PatchCache() for method in self.methods.values()}
        self._seen: dict[str, _Seen] = {}
        self._left: dict[Method, dict[str, str]] = {method: {} for method in self.methods.values()}
        self._handle = patch(target, Taker(self._take, self._wanted))

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop looking; what was seen stays."""
        self._handle.remove()

    def _wanted(self, site: Site) -> bool:
        return site.name in self._names and (self._looks(site) or any(m.across_steps for m in self.methods.values()))

    def _looks(self, site: Site) -> bool:
        """Whether the call's step is looked at."""
        return site.step is None or site.step in self._steps(site.steps, site.step)

    def _steps(self, steps: int | None, step: int) -> frozenset[int]:
        if steps is None:
            return frozenset([step])
        return looked_at(self._spans, steps)

    def _take(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> None:
        self._restart(site)
        if not self._looks(site):
            self._follow(q, k, v, site)
            return
        work = operations(q, k)
        sampled = Sample.of(q, k, v, site, self.queries)
        site = sampled.site
        seen = self._seen.get(site.name)
        if seen is None:
            seen = self._seen[site.name] = _Seen(site, work)
        elif seen.site.layout != site.layout:
            raise UnsupportedError(
                f"layer {site.name} had {counted(seen.site.layout.length, 'token')} and now has "
                f"{site.layout.length}: look "
                f"at runs of different sizes or lengths of text one by one"
            )
        energy = seen.energy.setdefault(site.step, Energy())
        against = seen.against.setdefault(site.step, {})
        outputs = {method: self._run(method, sampled, against) for method in self.methods.values()}
        served = {method: found for method, found in outputs.items() if found is not None}
        values = sampled.v.float().transpose(1, 2)
        for part, weights in sampled.pieces():
            if self.distances:
                energy.add(sampled, part, weights)
            dense = weights @ values if served else weights
            for method, (out, read) in served.items():
                there = out[:, :, part]
                against[method].add(weights, dense, there, None if read is None else read[:, :, part])

    def _restart(self, site: Site) -> None:
        """At the steps asked for: what methods kept of earlier ones is gone."""
        if site.step not in self._restarts or (site.run, site.step) == self._restarted:
            return
        self._restarted = (site.run, site.step)
        for method in self._caches:
            if method.across_steps:
                self._caches[method] = PatchCache()

    def _follow(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> None:
        """Show a call that is not compared to the methods whose later outputs depend on it."""
        for method, cache in self._caches.items():
            if method.across_steps and not method.why_not(site):
                method.attend(q, k, v, site, cache)

    def _run(
        self, method: Method, sampled: Sample, against: dict[Method, Against]
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """A method's output (B, H, n, D) for the sampled queries and the pairs it reads; None where it cannot serve."""
        site, cache = site_for(method, sampled.site), self._caches[method]
        reason = method.why_not(site)
        out = None if reason else method.attend(sampled.q, sampled.k, sampled.v, site, cache)
        if out is None:
            self._left[method][site.name] = reason or method.declines
            return None
        density = method.density(site, cache)  # of the call, before rows are asked for
        read: torch.Tensor | None = None
        try:
            read = read_rows(method, sampled.q, sampled.k, sampled.v, site, cache, sampled.rows)
        except UnsupportedError:
            pass  # agents, states, means: there are no pairs to count
        tally = against.setdefault(method, Against())
        tally.calls += 1
        for name in ("computed", "executed"):
            before = getattr(tally, name)
            now = None if density is None or before is None else before + getattr(density, name)
            setattr(tally, name, now)
        return out.index_select(1, sampled.rows).transpose(1, 2), read

    def result(self) -> AttentionLook:
        """What was seen so far.

        Raises:
            UnsupportedError: no call was seen: the pipeline has not run, or not to the steps asked for.
        """
        if not self._seen:
            raise UnsupportedError("no attention call was seen; run the pipeline while it is looked at")
        names = {method: name for name, method in self.methods.items()}
        left = {names[method]: dict(found) for method, found in self._left.items() if found}
        return AttentionLook(tuple(self._site(seen, names) for seen in self._seen.values()), self.queries, left)

    def _site(self, seen: _Seen, names: dict[Method, str]) -> SiteLook:
        site, steps = seen.site, []
        for step in sorted(seen.energy, key=lambda step: -1 if step is None else step):
            against = seen.against[step]
            steps.append(_step(step, seen.energy[step], {names[m]: _compared(a) for m, a in against.items()}))
        energies = [energy for energy in seen.energy.values() if energy.queries]
        queries = sum(energy.queries for energy in energies)

        def mean(name: str) -> Any:
            found = [getattr(energy, name) for energy in energies]
            return (sum(found) / queries).numpy() if found else torch.zeros(0).numpy()

        return SiteLook(
            site.name, site.role, site.layer, site.heads, site.layout.grid, site.layout.length, seen.operations,
            tuple(steps),
            mean("both"), mean("even_temporal"), mean("even_spatial"),
        )  # fmt: skip


def looked_at(spans: Any, steps: int) -> frozenset[int]:
    """The steps of a run of ``steps`` that are looked at.

    Raises:
        UsageError: spans that the run does not have.
    """
    if spans is not None:
        return resolve("steps", spans, steps)
    count = min(STEPS, steps)
    return frozenset(round(each) for each in torch.linspace(0, steps - 1, count, dtype=torch.float64).tolist())


def check_methods(target: Any, methods: Iterable[Method]) -> None:
    """Refuse methods that cannot be compared with dense attention here.

    Raises:
        UnsupportedError: one that fits no self or joint attention on a grid of the model, adds to the attention instead
            of computing it, or needs weights of its own layers.
    """
    for method in methods:
        if method.adds:
            raise UnsupportedError(
                f"{method.describe()} adds to the attention: there is no dense output to compare it with"
            )
        if method.needs_heads:
            raise UnsupportedError(
                f"{method.describe()} has weights for every layer, which exist only under a patch: it cannot be run "
                f"beside the dense model; genkit.patch(..., check=True) compares it where it runs"
            )
        denoisers = find_denoisers(target)
        if not any(denoiser.sites_for(Part(method, roles=_roles(denoiser, method))) for denoiser in denoisers):
            raise UnsupportedError(fits_nowhere(method, None, denoisers))


def _roles(denoiser: Any, method: Method) -> tuple[str, ...]:
    return tuple(role for role in method.roles if role in ("self", "joint", "spatial", "temporal"))


def _step(step: int | None, energy: Energy, methods: dict[str, MethodLook]) -> StepLook:
    count = energy.queries

    def mean(total: torch.Tensor | None) -> Any:
        return torch.zeros(0, 0).numpy() if total is None else (total / count).numpy()

    outside = {name: mean(total) for name, total in energy.outside.items()}
    keys = {share: mean(total) for share, total in energy.keys.items()}
    return StepLook(step, count, mean(energy.temporal), mean(energy.spatial), outside, keys, methods)


def _compared(found: Against) -> MethodLook:
    tiny = torch.finfo(torch.float64).tiny
    assert found.wrong is not None and found.whole is not None
    return MethodLook(
        None if found.kept is None else (found.kept / found.queries).numpy(),
        float((found.wrong.sum() / found.whole.sum().clamp(min=tiny)).sqrt()),
        (found.wrong / found.whole.clamp(min=tiny)).sqrt().numpy(),
        None if found.computed is None else found.computed / found.calls,
        None if found.executed is None else found.executed / found.calls,
    )
