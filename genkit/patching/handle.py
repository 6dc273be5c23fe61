"""`genkit.patch`: putting methods on a model's attention sites, and the handle that tells and undoes it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Place
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.base import FoundSite
from genkit.patching.clock import Clock, Moment
from genkit.patching.compiled import forget_stale_graphs
from genkit.patching.parts import AUTO, Part, as_parts, check_backend, check_recipe
from genkit.patching.report import Description, Report, SiteReport, SiteRow, mean_density
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.seam import SEAM
from genkit.patching.slot import Claim, Slot
from genkit.patching.targets import Denoiser, bypass_reason, find_denoisers, fits_nowhere
from genkit.patching.watch import Watch
from genkit.patching.work import work_share


def patch(
    target: Any,
    method: Method | Part | Sequence[Method | Part] | Any,
    *,
    schedule: Schedule | None = None,
    roles: str | Iterable[str] | None = None,
    backend: str = "auto",
    total_steps: int | None = None,
) -> PatchHandle:
    """Let a method compute a model's attention, at chosen layers, steps, branches and heads.

    Args:
        target: a Diffusers pipeline (all its denoisers are patched) or a bare denoiser; torch.compile, peft and DDP
            wrappers are looked through.
        method: an attention method, several of them on different sites, or a recipe (an object with ``parts``).
        schedule: where and when it applies; default everywhere. Parts with a schedule of their own keep it.
        roles: kinds of attention to patch ("self", "joint", "cross", ...); default: all the method can serve.
        backend: who executes the methods' operators, see ``genkit.kernels.backends()``. "auto" picks among the exact
            ones; a named one runs or raises with the reason.
        total_steps: number of sampling steps of a bare denoiser's loop, for schedules with negative ends. A pipeline
            tells it by itself.

    Returns:
        The handle, also a context manager: leaving the ``with`` block, or ``remove()``, restores the model bit for
        bit. The patch stays in force without the handle being kept.

    Raises:
        UnsupportedError: an unknown model class, a method that fits no site, an attention processor that bypasses the
            gate; the message names the reason.
        UsageError: a site that already has a patch at the same steps and branches, layers or heads that do not exist,
            a recipe made for other models, or (at the first denoiser call) steps beyond the step count.

    A call a method declines runs the model's own attention and is listed with its reason in ``report()``. The patch
    costs some tens of microseconds per attention call. Where neither the pipeline nor its scheduler counts steps, the
    timestep is read at every denoiser call, which waits for the device.
    """
    check_recipe(method, target)
    return PatchHandle(target, as_parts(method, schedule, roles), backend=backend, total_steps=total_steps)


@dataclass(frozen=True)
class _Placement:
    """One part on one site, decided before anything is touched."""

    denoiser: Denoiser
    found: FoundSite
    part: Part
    heads: tuple[int, ...] | None


def check(target: Any, method: Any, *, schedule: Schedule | None = None, roles: Any = None) -> None:
    """Raise what :func:`patch` would raise before it touches a model; the arguments are the same.

    Parameters may be on the meta device: the configuration of a model is enough to ask.
    """
    check_recipe(method, target)
    denoisers = find_denoisers(target)
    parts = as_parts(method, schedule, roles)
    _refuse_overlaps([placement for part in parts for placement in _place(denoisers, part)], hook=True)


def _place(denoisers: list[Denoiser], part: Part) -> list[_Placement]:
    """Where a part goes. Whatever can be refused is refused here."""
    chosen = [(denoiser, found) for denoiser in denoisers for found in denoiser.sites_for(part)]
    if not chosen:
        raise UnsupportedError(fits_nowhere(part.method, part.roles, denoisers))
    placements = []
    for denoiser, found in chosen:
        layer, layers = denoiser.layer(found)
        count = int(found.module.heads)
        heads = resolve("heads", part.plan.heads, count)
        if layer not in resolve("layers", part.plan.layers, layers) or not heads:
            continue
        reason = bypass_reason(getattr(found.module, "processor", None))
        if reason is not None:
            raise UnsupportedError(f"layer {denoiser.prefix}{found.path} cannot be patched: {reason}")
        placements.append(_Placement(denoiser, found, part, None if len(heads) == count else tuple(sorted(heads))))
    return placements


def _refuse_overlaps(placements: list[_Placement], hook: bool) -> None:
    taken: dict[int, list[tuple[Method, Schedule]]] = {}
    for placement in placements:
        found, plan = placement.found, placement.part.plan
        watch = Watch.of(placement.denoiser.model())
        slot = watch.slots.get(found.path) if watch is not None else None
        there = [(claim.method, claim.schedule) for claim in slot.claims] if slot is not None else []
        there += taken.setdefault(id(found.module), [])
        for method, schedule in there:
            if method.adds == placement.part.method.adds and not schedule.disjoint(plan):
                raise UsageError(
                    f"layer {placement.denoiser.prefix}{found.path} already has {method.describe()} ({schedule}): "
                    f"remove that patch, or give the two disjoint roles, layers, steps or branches"
                )
        if slot is not None and slot.hooked != hook:
            raise UsageError(
                f"layer {placement.denoiser.prefix}{found.path} is patched through the other door (genkit.patch "
                f"and genkit.attn_processors cannot share a layer)"
            )
        taken[id(found.module)].append((placement.part.method, plan))


class PatchHandle:
    """A patch in force, made by :func:`patch`. Its plans, counts and step live here and die with it.

    Args:
        target: pipeline or denoiser.
        parts: methods with schedules and roles.
        backend, total_steps: see :func:`patch`.
        hook: follow the attention modules by forward hooks; False when processors do it.
    """

    def __init__(
        self,
        target: Any,
        parts: tuple[Part, ...],
        *,
        backend: str = AUTO,
        total_steps: int | None = None,
        hook: bool = True,
    ):
        if total_steps is not None and (isinstance(total_steps, bool) or not isinstance(total_steps, int)):
            raise UsageError(explain("total_steps", total_steps, "a whole number or None"))
        self.parts = parts
        self.cache = PatchCache(check_backend(backend))
        self._hook = hook
        self._denoisers = find_denoisers(target)
        self._claims: list[tuple[Denoiser, Slot, Claim]] = []
        self._fittings: list[Any] = []
        self._run: int | None = None
        self._announced: set[str | None] = set()
        self._forwards_before = 0
        placements = [placement for part in parts for placement in _place(self._denoisers, part)]
        _refuse_overlaps(placements, hook)
        pipe = target if isinstance(getattr(target, "components", None), dict) else None
        self._clock = self._find_clock(pipe, total_steps)
        for denoiser in self._denoisers:
            forget_stale_graphs(denoiser.model())
        SEAM.hold()
        self._lease = weakref.finalize(self, SEAM.release)
        self._lease.atexit = False
        try:
            for placement in placements:
                self._install(placement)
            for part in parts:
                part.method.ready(self.cache)
        except BaseException:
            self.remove()
            raise

    def _find_clock(self, pipe: Any, total_steps: int | None) -> Clock:
        """The clock of patches that are there already, or a new one; what this call knows is added to it."""
        watches = [Watch.of(denoiser.model()) for denoiser in self._denoisers]
        clock = next((watch.clock for watch in watches if watch is not None), None) or Clock()
        clock.learn(pipe, total_steps)
        return clock

    def _install(self, placement: _Placement) -> None:
        denoiser, found = placement.denoiser, placement.found
        if denoiser.watch is None:
            model = denoiser.model()
            denoiser.watch = Watch.of(model) or Watch(model, denoiser.family, self._clock)
            denoiser.watch.listeners.append(self._check)
            denoiser.watch.methods += [(part.method, self.cache) for part in self.parts]
        slots = denoiser.watch.slots
        if found.path not in slots:
            slots[found.path] = Slot(denoiser.watch, found, *denoiser.layer(found), denoiser.prefix + found.path)
        slot = slots[found.path]
        if self._hook and not slot.hooked:
            slot.hook(found.module)
        claim = Claim(placement.part.method, placement.part.plan, placement.heads, self.cache)
        slot.claims.append(claim)
        self._claims.append((denoiser, slot, claim))
        always = claim.schedule.steps is None and claim.schedule.branches is None
        place = Place(slot.name, slot.role, slot.layer, slot.layers, slot.heads, found.module, always)
        self._fittings += claim.method.install(place, self.cache)
        claim.weighted = slot.name in self.weights
        if placement.heads is not None and (claim.method.adds or claim.weighted):
            raise UsageError(
                f"layer {slot.name}: {claim.method.name} needs all {slot.heads} heads; leave heads out of the schedule"
            )

    def _check(self, watch: Watch) -> None:
        """At every denoiser call: does the schedule fit what the sampling loop turned out to be?"""
        moment = watch.moment
        if moment.aside:
            return
        if self._run != moment.run:
            self._run = moment.run
            self._announced = set()
        for part in self.parts:
            _check_steps(part.plan, moment)
            _check_branches(part.plan, moment, self._announced)
        self._announced.add(moment.branch)

    @property
    def active(self) -> bool:
        """Whether the patch is still in force."""
        return self._lease.alive

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites the methods are on."""
        return tuple(slot.name for _, slot, _ in self._claims)

    @property
    def weights(self) -> PatchWeights:
        """The trainable weights of the patch's methods, a module: ``parameters()``, ``save(path)``, ``load(path)``."""
        return PatchWeights.of(self.cache)

    @property
    def slots(self) -> dict[str, Slot]:
        """Path of an attention module within its model -> its slot."""
        return {slot.path: slot for _, slot, _ in self._claims}

    def restart(self) -> None:
        """Tell a bare denoiser's patch that the next call begins a new sampling run. Pipelines need no such call."""
        self._clock.restart()

    def describe(self) -> Description:
        """What the patch covers, layer by layer, with densities once the layout of a call is known."""
        rows: list[SiteRow] = []
        untouched: list[str] = []
        for denoiser in self._denoisers:
            claims: dict[str, list[Claim]] = {}
            for owner, slot, claim in self._claims:
                if owner is denoiser:
                    claims.setdefault(slot.path, []).append(claim)
            roles = {found.role for found in denoiser.sites if found.path in claims}
            for found in denoiser.sites:
                name = denoiser.prefix + found.path
                if found.path not in claims and found.role not in roles:
                    untouched.append(name)
                for claim in claims.get(found.path, [None] if found.role in roles else []):
                    rows.append(self._row(name, found, denoiser.layer(found)[0], claim))
        family = " + ".join(dict.fromkeys(denoiser.family.name for denoiser in self._denoisers))
        schedules = " | ".join(dict.fromkeys(str(part.plan) for part in self.parts))
        return Description(family, schedules, tuple(rows), tuple(untouched))

    def _row(self, name: str, found: FoundSite, layer: int, claim: Claim | None) -> SiteRow:
        heads = int(found.module.heads)
        if claim is None:
            return SiteRow(name, found.role, layer, heads, None)
        method = claim.method.describe()
        if not claim.tally.sites:
            return SiteRow(name, found.role, layer, heads, method)
        site = list(claim.tally.sites)[-1]
        density = claim.method.density(site, self.cache)
        return SiteRow(
            name,
            found.role,
            layer,
            heads,
            method,
            site.layout.grid,
            site.layout.length,
            site.key_layout.length,
            density,
        )

    def report(self, clear: bool = False) -> Report:
        """What really ran since the patch was made, or since the last ``clear``.

        Args:
            clear: count anew from here on.
        """
        sites = tuple(self._site_report(slot, claim) for _, slot, claim in self._claims)
        watches = [denoiser.watch for denoiser in self._denoisers if denoiser.watch is not None]
        moments = [watch.last_moment for watch in watches if watch.last_moment is not None]
        steps = next((moment.steps for moment in moments if moment.steps is not None), None)
        before, forwards = self._forwards_before, sum(watch.forwards for watch in watches)
        work = work_share(self._claims, self.cache)
        if clear:
            self._forwards_before = forwards
            for _, _, claim in self._claims:
                claim.tally.clear()
        ran = forwards > before
        remarks = [text for part in self.parts if ran for text in part.method.remarks(self.cache)]
        return Report.of_sites(sites, forwards - before, steps, work, tuple(dict.fromkeys(remarks)))

    def _site_report(self, slot: Slot, claim: Claim) -> SiteReport:
        tally = claim.tally
        densities = [(claim.method.density(site, self.cache), calls) for site, calls in tally.sites.items()]
        return SiteReport(
            name=slot.name,
            role=slot.role,
            layer=slot.layer,
            method=claim.method.describe(),
            ran=tally.ran,
            outside=tally.outside,
            declined=dict(tally.declined),
            skipped=tally.skipped,
            density=mean_density(densities),
            seconds=tally.method_time.seconds(),
            own_seconds=tally.own_time.seconds(),
            steps=tuple(sorted(tally.steps)),
            branches=tuple(sorted(tally.branches)),
        )

    def remove(self) -> None:
        """Restore the model bit for bit. Twice is harmless. Under activation checkpointing call it after backward."""
        if not self._lease.alive:
            return
        for fitting in self._fittings:
            fitting.remove()
        for denoiser, slot, claim in self._claims:
            slot.claims.remove(claim)
            if not slot.claims:
                slot.unhook()
                denoiser.watch.slots.pop(slot.path)
        for denoiser in self._denoisers:
            if denoiser.watch is None:
                continue
            denoiser.watch.listeners.remove(self._check)
            for part in self.parts:
                denoiser.watch.methods.remove((part.method, self.cache))
            if not denoiser.watch.listeners:
                denoiser.watch.close()
        self._lease()

    def __enter__(self) -> PatchHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        methods = ", ".join(part.method.describe() for part in self.parts)
        state = "in force" if self.active else "removed"
        return f"<PatchHandle: {methods} on {len(self._claims)} sites, {state}>"


def _check_steps(schedule: Schedule, moment: Moment) -> None:
    if schedule.steps is None:
        return
    if moment.step is None:
        raise UsageError("the schedule names steps, but training has no sampling steps; leave steps out of it")
    if moment.steps is not None:
        resolve("steps", schedule.steps, moment.steps)
    elif any(span.start < 0 or (span.stop is not None and span.stop < 0) for span in schedule.steps):
        raise UsageError(
            f"the schedule ({schedule}) counts steps from the end, but nobody tells how many there are: give "
            f"total_steps= to genkit.patch, or patch the pipeline instead of the bare denoiser"
        )


def _check_branches(schedule: Schedule, moment: Moment, announced: set[str | None]) -> None:
    """A branch that never comes is an error: at once when calls cannot be told apart, else after the first step."""
    names = schedule.branches
    if not names or moment.branch in names or announced & names:
        return
    if moment.branch is not None and not moment.step and moment.branch != "cond_uncond":
        return
    seen = ", ".join(sorted({str(name) for name in (*announced, moment.branch) if name is not None})) or "nothing"
    raise UsageError(
        f"the schedule names branches {', '.join(sorted(names))}, but the calls of this model are announced as {seen}; "
        f"choose among these or leave branches out of the schedule"
    )
