"""`genkit.patch`: putting methods on a model's attention sites, and the handle that tells and undoes it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Place
from genkit.attention.weights import PatchWeights
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.patching import summary
from genkit.patching.assignment import Assignment
from genkit.patching.compiled import forget_stale_graphs
from genkit.patching.first_step import Check, as_check
from genkit.patching.held import Held
from genkit.patching.interception import INTERCEPTION
from genkit.patching.loop_check import LoopCheck
from genkit.patching.parts import AUTO, Part, as_parts, check_backend, check_recipe
from genkit.patching.patched_layer import PatchedLayer
from genkit.patching.patched_model import PatchedModel
from genkit.patching.placement import Placement, place
from genkit.patching.report import Description, Report
from genkit.patching.schedule import Schedule
from genkit.patching.step_tracker import Moment, StepTracker
from genkit.patching.targets import find_denoisers


def patch(
    target: Any,
    method: Method | Part | Sequence[Method | Part] | Any,
    *,
    schedule: Schedule | None = None,
    roles: str | Iterable[str] | None = None,
    backend: str = "auto",
    total_steps: int | None = None,
    check: bool | float | Check | None = None,
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
        check: compare every site with dense attention on a sample of queries at the first call that is served there:
            True warns about sites that are far off, a number is the largest relative error that is not refused, a
            :class:`genkit.Check` says both. Costs well under 1 % of a run; ``report().checks`` has what was found.

    Returns:
        The handle, also a context manager: leaving the ``with`` block, or ``remove()``, restores the model bit for
        bit. The patch stays in force without the handle being kept.

    Raises:
        UnsupportedError: an unknown model class, a method that fits no site, an attention processor that bypasses the
            gate; the message names the reason.
        UsageError: a site that already has a patch at the same steps and branches, layers or heads that do not exist,
            a recipe made for other models, or (at the first denoiser call) steps beyond the step count.
        TooFarError: at the first call of a site, when ``check`` refuses it; the message names the site and the error.

    A call a method declines runs the model's own attention and is listed with its reason in ``report()``. The patch
    costs some tens of microseconds per attention call. Where neither the pipeline nor its scheduler counts steps, the
    timestep is read at every denoiser call, which waits for the device.
    """
    check_recipe(method, target)
    parts = as_parts(method, schedule, roles)
    return PatchHandle(target, parts, backend=backend, total_steps=total_steps, checking=as_check(check))


def check(target: Any, method: Any, *, schedule: Schedule | None = None, roles: Any = None) -> None:
    """Raise what :func:`patch` would raise before it touches a model; the arguments are the same.

    Parameters may be on the meta device: the configuration of a model is enough to ask.
    """
    check_recipe(method, target)
    place(find_denoisers(target), as_parts(method, schedule, roles), hook=True)


class PatchHandle:
    """A patch in force, made by :func:`patch`. Its plans, counts and step live here and die with it.

    Args:
        target: pipeline or denoiser.
        parts: methods with schedules and roles.
        backend, total_steps: see :func:`patch`.
        hook: follow the attention modules by forward hooks; False when processors do it.
        checking: the first-step check, None without.
    """

    def __init__(
        self,
        target: Any,
        parts: tuple[Part, ...],
        *,
        backend: str = AUTO,
        total_steps: int | None = None,
        hook: bool = True,
        checking: Check | None = None,
    ):
        if total_steps is not None and (isinstance(total_steps, bool) or not isinstance(total_steps, int)):
            raise UsageError(explain("total_steps", total_steps, "a whole number or None"))
        self.parts = parts
        self.methods = tuple(part.method for part in parts)
        self.cache = PatchCache(check_backend(backend))
        self._hook = hook
        self.checking = checking
        self._denoisers = find_denoisers(target)
        self._held: list[Held] = []
        self._assigned: list[tuple[int, Assignment]] = []  # with the number of its part
        self._models: list[PatchedModel] = []
        self._fittings: list[Any] = []
        self._loop = LoopCheck(part.applied for part in parts)
        self._forwards_before = 0
        placements = place(self._denoisers, parts, hook)
        pipe = target if isinstance(getattr(target, "components", None), dict) else None
        self._tracker = self._find_tracker(pipe, total_steps)
        for denoiser in self._denoisers:
            forget_stale_graphs(denoiser.model())
        INTERCEPTION.hold()
        self._lease = weakref.finalize(self, INTERCEPTION.release)
        self._lease.atexit = False
        try:
            for placement in placements:
                self._install(placement)
            for part in parts:
                part.method.ready(self.cache)
        except BaseException:
            self.remove()
            raise

    def _find_tracker(self, pipe: Any, total_steps: int | None) -> StepTracker:
        """The step tracker of patches that are there already, or a new one; it learns what this call knows."""
        there = [PatchedModel.of(denoiser.model()) for denoiser in self._denoisers]
        tracker = next((model.tracker for model in there if model is not None), None) or StepTracker()
        tracker.learn(pipe, total_steps)
        return tracker

    def _follow(self, placement: Placement) -> PatchedModel:
        """What follows the model of a placement, with this patch on it."""
        model = placement.denoiser.model()
        patched = PatchedModel.of(model) or PatchedModel(model, placement.denoiser.family, self._tracker)
        if patched not in self._models:
            patched.patches.append(self)
            self._models.append(patched)
        return patched

    def _install(self, placement: Placement) -> None:
        found, patched = placement.found, self._follow(placement)
        if found.path not in patched.layers:
            position = placement.denoiser.layer(found)
            patched.layers[found.path] = PatchedLayer(patched.state, found, *position, placement.name)
        layer = patched.layers[found.path]
        if self._hook and not layer.hooked:
            layer.hook(found.module)
        assignment = Assignment(placement.part.method, placement.part.applied, placement.heads, self.cache)
        assignment.check = self.checking
        number = next(number for number, part in enumerate(self.parts) if part is placement.part)
        self._assigned.append((number, assignment))
        layer.assignments.append(assignment)
        self._held.append(Held(placement.denoiser, patched, layer, assignment, found.module))
        self._fit(placement, patched, layer, assignment)
        if placement.heads is not None and (assignment.method.adds or assignment.weighted):
            raise UsageError(
                f"layer {layer.name}: {assignment.method.name} needs all {layer.heads} heads; leave heads out of the "
                f"schedule"
            )

    def _fit(self, placement: Placement, patched: PatchedModel, layer: PatchedLayer, assignment: Assignment) -> None:
        """Let the method make weights and hooks at a layer."""
        method, found = assignment.method, placement.found
        if layer.heads is None and method.needs_heads:
            raise UnsupportedError(
                f"layer {layer.name} tells its number of heads only when called, and {method.name} needs it before"
            )
        always = assignment.schedule.steps is None and assignment.schedule.branches is None
        projections = patched.family.projections(found.module)
        heads = layer.heads or 0
        where = Place(
            layer.name, layer.role, layer.layer, layer.layers, heads, found.module, always, projections, layer.guide,
            found.text, patched.family.rotary, patched.family.timestep,
        )  # fmt: skip
        self._fittings += method.install(where, self.cache)
        assignment.weighted = layer.name in self.weights

    def check(self, moment: Moment) -> None:
        """At every denoiser call: does the schedule fit what the sampling loop turned out to be?"""
        self._loop.check(moment)

    @property
    def active(self) -> bool:
        """Whether the patch is still in force."""
        return self._lease.alive

    @property
    def models(self) -> tuple[Any, ...]:
        """The denoisers the patch is on, as far as they are alive."""
        return tuple(model for model in (patched.model() for patched in self._models) if model is not None)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites the methods are on."""
        return tuple(each.layer.name for each in self._held)

    @property
    def weights(self) -> PatchWeights:
        """The trainable weights of the patch's methods, a module: ``parameters()``, ``save(path)``, ``load(path)``."""
        return PatchWeights.of(self.cache)

    @property
    def layers(self) -> dict[str, PatchedLayer]:
        """Path of an attention module within its model -> its patched layer."""
        return {each.layer.path: each.layer for each in self._held}

    @contextmanager
    def scheduled(self, schedules: Sequence[Schedule]) -> Iterator[None]:
        """Other steps and branches for the time of the block, such as those of sampling while a model is trained.
        Layers and heads stay those that the patch was put on.

        Args:
            schedules: one for every part, in their order.
        """
        loop, before = self._loop, [assignment.schedule for _, assignment in self._assigned]
        self._loop = LoopCheck(schedules)
        for number, assignment in self._assigned:
            assignment.follow(schedules[number])
        try:
            yield
        finally:
            self._loop = loop
            for (_, assignment), schedule in zip(self._assigned, before, strict=True):
                assignment.follow(schedule)

    def restart(self) -> None:
        """Tell a bare denoiser's patch that the next call begins a new sampling run. Pipelines need no such call."""
        self._tracker.restart()

    def describe(self) -> Description:
        """What the patch covers, layer by layer, with densities once the layout of a call is known."""
        return summary.describe(self._denoisers, self._held, [part.applied for part in self.parts])

    def report(self, clear: bool = False) -> Report:
        """What really ran since the patch was made, or since the last ``clear``.

        Args:
            clear: count anew from here on.
        """
        found = summary.report(self._held, self.cache, self._forwards_before, self.checking)
        if clear:
            self._forwards_before = summary.forwards(self._held)
            for each in self._held:
                each.assignment.counts.clear()
        return found

    def remove(self) -> None:
        """Restore the model bit for bit. Twice is harmless. Under activation checkpointing call it after backward."""
        if not self._lease.alive:
            return
        for fitting in self._fittings:
            fitting.remove()
        for each in self._held:
            each.layer.assignments.remove(each.assignment)
            each.patched.drop(each.layer)
        for patched in self._models:
            patched.patches.remove(self)
            patched.close_if_free()
        self._lease()

    def __enter__(self) -> PatchHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        methods = ", ".join(method.describe() for method in self.methods)
        state = "in force" if self.active else "removed"
        return f"<PatchHandle: {methods} on {len(self._held)} sites, {state}>"
