"""Where the parts of a patch go, decided and refused before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.attention.method import Method
from genkit.errors import UnsupportedError, UsageError
from genkit.families.base import FoundSite
from genkit.patching.bypass import bypass_reason
from genkit.patching.parts import Part
from genkit.patching.patched_model import PatchedModel
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.targets import Denoiser, fits_nowhere


@dataclass(frozen=True)
class Placement:
    """One part on one site.

    Args:
        denoiser, found: the model and its attention module.
        part: method, schedule and roles.
        heads: covered query heads, or None for all of them.
    """

    denoiser: Denoiser
    found: FoundSite
    part: Part
    heads: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The site as users know it."""
        return self.denoiser.prefix + self.found.path


def place(denoisers: list[Denoiser], parts: tuple[Part, ...], hook: bool) -> list[Placement]:
    """Where parts go. Whatever can be refused is refused here.

    Args:
        hook: the modules are followed by forward hooks, and not through processors.
    """
    placements = [placement for part in parts for placement in _place(denoisers, part)]
    _refuse_overlaps(placements, hook)
    return placements


def _place(denoisers: list[Denoiser], part: Part) -> list[Placement]:
    chosen = [(denoiser, found) for denoiser in denoisers for found in denoiser.sites_for(part)]
    if not chosen:
        raise UnsupportedError(fits_nowhere(part.method, part.roles, denoisers))
    placements = []
    for denoiser, found in chosen:
        layer, layers = denoiser.layer(found)
        heads = _heads(denoiser, found, part)
        if layer not in resolve("layers", part.applied.layers, layers) or heads == ():
            continue
        reason = bypass_reason(getattr(found.module, "processor", None))
        if reason is not None:
            raise UnsupportedError(f"layer {denoiser.prefix}{found.path} cannot be patched: {reason}")
        placements.append(Placement(denoiser, found, part, heads))
    return placements


def _heads(denoiser: Denoiser, found: FoundSite, part: Part) -> tuple[int, ...] | None:
    """The heads a part covers at a site: None for all of them, empty for none."""
    count = denoiser.family.heads(found.module)
    if count is None:
        if part.applied.heads is not None:
            raise UnsupportedError(
                f"layer {denoiser.prefix}{found.path} tells its number of heads only when it is called; leave heads "
                f"out of the schedule"
            )
        return None
    heads = resolve("heads", part.applied.heads, count)
    return None if len(heads) == count else tuple(sorted(heads))


def _exclude(one: Method, other: Method) -> bool:
    """Whether two methods cannot share a call: one alone computes its attention, and terms are added once each."""
    return one.name == other.name if one.adds and other.adds else one.adds == other.adds


def _refuse_overlaps(placements: list[Placement], hook: bool) -> None:
    taken: dict[int, list[tuple[Method, Schedule]]] = {}
    for placement in placements:
        found, wanted = placement.found, placement.part.applied
        patched = PatchedModel.of(placement.denoiser.model())
        layer = patched.layers.get(found.path) if patched is not None else None
        there = [(each.method, each.schedule) for each in layer.assignments] if layer is not None else []
        there += taken.setdefault(id(found.module), [])
        for method, schedule in there:
            if _exclude(method, placement.part.method) and not schedule.disjoint(wanted):
                raise UsageError(
                    f"layer {placement.name} already has {method.describe()} ({schedule}): remove that patch "
                    f"(genkit.unpatch does), or give the two disjoint roles, layers, steps or branches"
                )
        if layer is not None and layer.hooked != hook:
            raise UsageError(
                f"layer {placement.name} is patched through the other door (genkit.patch and genkit.attn_processors "
                f"cannot share a layer)"
            )
        taken[id(found.module)].append((placement.part.method, wanted))
