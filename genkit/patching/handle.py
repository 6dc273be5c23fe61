"""`genkit.patch`: putting methods on a model's attention sites, and the handle that tells and undoes it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.attention.base import ROLES, Method, PatchCache
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.patching.clock import Clock
from genkit.patching.families.base import Family, FoundSite, diffusers_class, families, family_of, unwrap
from genkit.patching.report import Description, Report, SiteReport, SiteRow, mean_density
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.seam import SEAM
from genkit.patching.slot import Claim, Slot
from genkit.patching.watch import Watch

if TYPE_CHECKING:
    from torch import nn

_BYPASS = {
    "get_attention_scores": "computes attention with its own matrix products",
    "memory_efficient_attention": "calls xformers directly",
}


@dataclass(frozen=True)
class Part:
    """One method with its schedule and roles; several of them make a patch or a recipe.

    Args:
        method: the attention method.
        schedule: where and when it applies.
        roles: the roles it is put on; None = every role of the model it can serve.
    """

    method: Method
    schedule: Schedule = Schedule()
    roles: tuple[str, ...] | None = None


class Denoiser:
    """A patchable model and its name within the pipeline ("" for a bare model or a pipeline's only denoiser)."""

    def __init__(self, model: nn.Module, prefix: str):
        self.model = weakref.ref(model)
        self.family: Family = family_of(model)
        self.prefix = prefix
        self.sites = self.family.find_sites(model)
        self.watch: Watch | None = None


def patch(
    target: Any,
    method: Method | Part | Sequence[Method | Part] | Any,
    *,
    schedule: Schedule | None = None,
    roles: str | Iterable[str] | None = None,
    backend: str | None = None,
    total_steps: int | None = None,
) -> PatchHandle:
    """Let a method compute a model's attention, at chosen layers, steps, branches and heads.

    Args:
        target: a Diffusers pipeline (all its denoisers are patched) or a bare denoiser; torch.compile, peft and DDP
            wrappers are looked through.
        method: an attention method, several of them for different roles, or a recipe (an object with ``parts``).
        schedule: where and when it applies; default everywhere. With several methods it goes for each of them that
            has none of its own.
        roles: kinds of attention to patch ("self", "joint", "cross", ...); default: all the method can serve.
        backend: operator backend to use, for methods that have a ``backend`` setting; default: the method's own.
        total_steps: number of sampling steps of a bare denoiser's loop, for schedules with negative ends.

    Returns:
        The handle, also a context manager: leaving the ``with`` block, or ``remove()``, restores the model bit for
        bit. The patch stays in force without the handle being kept.

    Raises:
        UnsupportedError: an unknown model class, a method that fits no site, an attention processor that bypasses the
            gate; the message names the reason.
        UsageError: a site that already has a patch at the same steps and branches, layers or heads that do not exist,
            or (at the first denoiser call) steps beyond the step count.
    """
    parts = _as_parts(method, schedule, _as_roles(roles), backend)
    return PatchHandle(target, parts, total_steps=total_steps)


class PatchHandle:
    """A patch in force. Made by :func:`patch`; all its state (plans, counts, step) lives here and dies with it."""

    def __init__(self, target: Any, parts: tuple[Part, ...], *, total_steps: int | None = None, hook: bool = True):
        if total_steps is not None and (isinstance(total_steps, bool) or not isinstance(total_steps, int)):
            raise UsageError(explain("total_steps", total_steps, "a whole number or None"))
        self.parts = parts
        self.cache = PatchCache()
        self._hook = hook
        self._denoisers = find_denoisers(target)
        self._claims: list[tuple[Denoiser, Slot, Claim]] = []
        self._checked: dict[int, Any] = {}
        self._branches_seen: set[str | None] = set()
        plan = self._plan()
        SEAM.hold()
        self._lease = weakref.finalize(self, SEAM.release)
        self._clock = self._find_clock(target, total_steps)
        self._install(plan)

    # Putting on

    def _plan(self) -> list[tuple[Denoiser, FoundSite, int, int, Part]]:
        """Which part goes on which site; everything that can be refused is refused here, before anything changes."""
        plan = []
        for part in self.parts:
            chosen = [entry for denoiser in self._denoisers for entry in _sites_for(part, denoiser)]
            if not chosen:
                raise UnsupportedError(_fits_nowhere(part, self._denoisers))
            for denoiser, found, layer, layers in chosen:
                heads = int(found.module.heads)
                resolve("heads", part.schedule.heads, heads)
                if layer not in resolve("layers", part.schedule.layers, layers):
                    continue
                reason = bypass_reason(found.module) if self._hook else None
                if reason is not None:
                    raise UnsupportedError(f"layer {found.path} cannot be patched: {reason}")
                self._refuse_overlap(denoiser, found, part, plan)
                plan.append((denoiser, found, layer, layers, part))
        return plan

    def _refuse_overlap(self, denoiser: Denoiser, found: FoundSite, part: Part, plan: list) -> None:
        watch = Watch.of(denoiser.model())
        slot = watch.slots.get(found.path) if watch is not None else None
        there = [(claim.method, claim.schedule) for claim in slot.claims] if slot is not None else []
        there += [(p.method, p.schedule) for _, other, _, _, p in plan if other.module is found.module]
        for method, schedule in there:
            if not schedule.disjoint(part.schedule):
                raise UsageError(
                    f"layer {found.path} already has {method.describe()} ({schedule}): remove that patch, or give the "
                    f"two schedules disjoint layers, steps or branches"
                )

    def _find_clock(self, target: Any, total_steps: int | None) -> Clock:
        for denoiser in self._denoisers:
            watch = Watch.of(denoiser.model())
            if watch is not None:
                return watch.clock
        pipe = target if hasattr(target, "components") else None
        return Clock(pipe, total_steps)

    def _install(self, plan: list[tuple[Denoiser, FoundSite, int, int, Part]]) -> None:
        for denoiser, found, layer, layers, part in plan:
            model = denoiser.model()
            if denoiser.watch is None:
                denoiser.watch = Watch.of(model) or Watch(model, denoiser.family, self._clock)
                denoiser.watch.listeners.append(self._check)
            watch = denoiser.watch
            slot = watch.slots.get(found.path)
            if slot is None:
                slot = Slot(watch, found, layer, layers, denoiser.prefix + found.path)
                watch.slots[found.path] = slot
            if self._hook and not slot.hooked:
                slot.hook(found.module)
            heads = None
            if part.schedule.heads is not None:
                covered = resolve("heads", part.schedule.heads, slot.heads)
                heads = tuple(sorted(covered)) if len(covered) < slot.heads else None
                if not covered:
                    continue
            claim = Claim(part.method, part.schedule, heads, self.cache, self)
            slot.claims.append(claim)
            self._claims.append((denoiser, slot, claim))

    # In force

    def _check(self, watch: Watch) -> None:
        """At every denoiser call: does the schedule fit what the sampling loop turned out to be?"""
        moment = watch.moment
        fresh = self._checked.get(0) != moment.run
        if fresh:
            self._checked[0] = moment.run
            self._branches_seen = set()
        first_again = moment.step is not None and moment.step > 0
        for part in self.parts:
            if part.schedule.steps is not None:
                _check_steps(part.schedule, moment)
            names = part.schedule.branches
            if names and moment.branch not in names:
                seen = {moment.branch} if moment.branch in (None, "cond_uncond") else self._branches_seen
                if seen and not seen & names and (first_again or moment.branch in (None, "cond_uncond")):
                    raise UsageError(_no_such_branch(names, seen))
        self._branches_seen.add(moment.branch)

    @property
    def active(self) -> bool:
        """Whether the patch is still in force."""
        return self._lease.alive

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the patched sites."""
        return tuple(slot.name for _, slot, _ in self._claims)

    def restart(self) -> None:
        """Tell a bare denoiser's patch that the next call begins a new sampling run. Pipelines need no such call."""
        self._clock.restart()

    def describe(self) -> Description:
        """What the patch covers, per layer, with densities once the layout of a call is known."""
        claimed = {id(slot): claim for _, slot, claim in self._claims}
        rows, untouched = [], []
        for denoiser in self._denoisers:
            roles = {slot.role for owner, slot, _ in self._claims if owner is denoiser}
            counts = _layer_numbers(denoiser.sites)
            for found in denoiser.sites:
                name = denoiser.prefix + found.path
                slot = denoiser.watch.slots.get(found.path) if denoiser.watch is not None else None
                claim = claimed.get(id(slot)) if slot is not None else None
                if claim is None and found.role not in roles:
                    untouched.append(name)
                    continue
                layer = counts[found.path][0]
                rows.append(self._row(name, found, layer, claim))
        schedules = {str(part.schedule): None for part in self.parts}
        names = " + ".join(dict.fromkeys(denoiser.family.name for denoiser in self._denoisers))
        return Description(names, " | ".join(schedules), tuple(rows), tuple(untouched))

    def _row(self, name: str, found: FoundSite, layer: int, claim: Claim | None) -> SiteRow:
        heads = int(found.module.heads)
        if claim is None:
            return SiteRow(name, found.role, layer, heads, None)
        sites = list(claim.tally.sites)
        if not sites:
            return SiteRow(name, found.role, layer, heads, claim.method.describe())
        site = sites[-1]
        return SiteRow(
            name,
            found.role,
            layer,
            heads,
            claim.method.describe(),
            site.layout.grid,
            site.layout.length,
            site.key_layout.length,
            claim.method.density(site, self.cache),
        )

    def report(self, clear: bool = False) -> Report:
        """What really ran since the patch was made (or since the last ``clear``).

        Args:
            clear: start counting anew afterwards.
        """
        rows = []
        for _, slot, claim in self._claims:
            tally = claim.tally
            densities = [(claim.method.density(site, self.cache), calls) for site, calls in tally.sites.items()]
            rows.append(
                SiteReport(
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
            )
            if clear:
                tally.clear()
        watches = [denoiser.watch for denoiser in self._denoisers if denoiser.watch is not None]
        moments = [watch.last_moment for watch in watches if watch.last_moment is not None]
        steps = next((moment.steps for moment in moments if moment.steps is not None), None)
        return Report(tuple(rows), sum(watch.forwards for watch in watches), steps)

    # Taking off

    def remove(self) -> None:
        """Restore the model bit for bit. Twice is harmless. Under activation checkpointing call it after backward."""
        if not self._lease.alive:
            return
        for denoiser, slot, claim in self._claims:
            slot.claims.remove(claim)
            if not slot.claims:
                slot.unhook()
                denoiser.watch.slots.pop(slot.path, None)
        for denoiser in self._denoisers:
            watch = denoiser.watch
            if watch is None:
                continue
            watch.listeners.remove(self._check)
            model = denoiser.model()
            if not watch.listeners and model is not None:
                watch.close(model)
        self._lease()

    def __enter__(self) -> PatchHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        methods = ", ".join(part.method.describe() for part in self.parts)
        state = "in force" if self.active else "removed"
        return f"<PatchHandle {methods} on {len(self._claims)} sites, {state}>"


def find_denoisers(target: Any) -> list[Denoiser]:
    """The denoisers of a pipeline, or the bare model itself; UnsupportedError when genkit knows none of them."""
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        model = unwrap(target)
        if not hasattr(model, "named_modules"):
            raise UsageError(explain("patch target", type(target).__name__, "a Diffusers pipeline or denoiser"))
        return [Denoiser(model, "")]
    known = {cls for family in families() for cls in family.classes}
    models = {name: unwrap(part) for name, part in components.items() if hasattr(part, "named_modules")}
    chosen = {name: model for name, model in models.items() if diffusers_class(model) in known}
    if not chosen:
        likely = [name for name in ("transformer", "unet", "prior") if name in models] or list(models)
        found = ", ".join(f"{name} is {type(models[name]).__name__}" for name in likely)
        raise UnsupportedError(
            f"{type(target).__name__} has no denoiser genkit knows ({found or 'it has no models at all'}). "
            f"Known: {', '.join(sorted(known))}"
        )
    return [Denoiser(model, f"{name}." if len(chosen) > 1 else "") for name, model in chosen.items()]


def bypass_reason(module: nn.Module) -> str | None:
    """Why an attention module's processor never reaches the gate, or None when nothing speaks against it."""
    processor = getattr(module, "processor", None)
    if processor is None:
        return None
    try:
        source = inspect.getsource(type(processor).__call__)
    except (OSError, TypeError):
        return None  # No source to read: then the first call tells.
    for mark, reason in _BYPASS.items():
        if mark in source:
            return (
                f"its processor {type(processor).__name__} {reason}, so genkit cannot see its queries and keys; go "
                f"back to the default processors (set_attn_processor, disable_attention_slicing, "
                f"disable_xformers_memory_efficient_attention)"
            )
    return None


def _layer_numbers(sites: list[FoundSite]) -> dict[str, tuple[int, int]]:
    """Path -> (index among the layers of its role, number of layers of its role)."""
    totals: dict[str, int] = {}
    numbers = {}
    for found in sites:
        numbers[found.path] = totals.get(found.role, 0)
        totals[found.role] = numbers[found.path] + 1
    return {found.path: (numbers[found.path], totals[found.role]) for found in sites}


def _sites_for(part: Part, denoiser: Denoiser) -> list[tuple[Denoiser, FoundSite, int, int]]:
    wanted = part.method.roles if part.roles is None else part.roles
    numbers = _layer_numbers(denoiser.sites)
    return [
        (denoiser, found, *numbers[found.path])
        for found in denoiser.sites
        if found.role in wanted and found.role in part.method.roles
    ]


def _fits_nowhere(part: Part, denoisers: list[Denoiser]) -> str:
    has = sorted({found.role for denoiser in denoisers for found in denoiser.sites})
    names = ", ".join(dict.fromkeys(denoiser.family.name for denoiser in denoisers))
    asked = "" if part.roles is None else f" (asked for: {', '.join(part.roles)})"
    return (
        f"{part.method.name} fits no attention of this model: it works on {', '.join(part.method.roles)} "
        f"attention{asked}, {names} has {', '.join(has)}"
    )


def _as_roles(roles: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if roles is None:
        return None
    given = tuple(part.strip() for part in roles.split(",")) if isinstance(roles, str) else tuple(roles)
    for role in given:
        if role not in ROLES:
            raise UsageError(explain("role", role, ROLES))
    return given


def _as_parts(
    method: Any, schedule: Schedule | None, roles: tuple[str, ...] | None, backend: str | None
) -> tuple[Part, ...]:
    if schedule is not None and not isinstance(schedule, Schedule):
        raise UsageError(explain("schedule", schedule, "a genkit.Schedule, for instance Schedule(steps='10:-2')"))
    given = getattr(method, "parts", method)
    entries = list(given) if isinstance(given, (list, tuple)) else [given]
    if not entries:
        raise UsageError("patch needs at least one attention method")
    parts = []
    for entry in entries:
        part = entry if isinstance(entry, Part) else Part(entry, schedule or Schedule())
        if not isinstance(part.method, Method):
            hint = "an attention method such as genkit.Radial(), a list of them, or a recipe"
            raise UsageError(explain("method", part.method, hint))
        if isinstance(entry, Part) and schedule is not None:
            part = Part(part.method, schedule, part.roles)
        parts.append(Part(_with_backend(part.method, backend), part.schedule, roles or part.roles))
    return tuple(parts)


def _with_backend(method: Method, backend: str | None) -> Method:
    import dataclasses

    if backend is None:
        return method
    if not any(field.name == "backend" for field in dataclasses.fields(method)):
        raise UsageError(f"{method.name} has no backend setting, so backend={backend!r} means nothing to it")
    return dataclasses.replace(method, backend=backend)


def _check_steps(schedule: Schedule, moment: Any) -> None:
    if moment.step is None:
        raise UsageError("the schedule names steps, but training has no sampling steps; leave steps out of it")
    if moment.steps is not None:
        resolve("steps", schedule.steps, moment.steps)
    elif any(span.start < 0 or (span.stop is not None and span.stop < 0) for span in schedule.steps):
        raise UsageError(
            f"the schedule {schedule} counts steps from the end, but nobody tells how many there are: give "
            f"total_steps= to genkit.patch, or patch the pipeline instead of the bare denoiser"
        )


def _no_such_branch(names: frozenset[str], seen: set[str | None]) -> str:
    announced = ", ".join(sorted(str(name) for name in seen if name is not None)) or "none"
    return (
        f"the schedule names branches {', '.join(sorted(names))}, but this model's calls are announced as: {announced}"
        f"; leave branches out of the schedule"
    )
