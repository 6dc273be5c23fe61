"""How much attention work a patch leaves of dense attention's, what its schedule leaves dense included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from genkit.attention.cache import PatchCache

if TYPE_CHECKING:
    from genkit.families.base import FoundSite
    from genkit.patching.slot import Claim, Slot
    from genkit.patching.targets import Denoiser


def work_share(claims: Iterable[tuple[Denoiser, Slot, Claim]], cache: PatchCache) -> float | None:
    """Query-key pairs the machine paid for as a share of dense attention's, over all layers of the patched roles.

    Layers that the schedule leaves out count as dense, with as many calls as the patched ones; so do calls outside of
    the schedule's steps and branches, declined calls and heads left out. Methods that add to the attention are not
    counted.

    Returns:
        The share, or None when nothing ran or the density of a method that ran is unknown.
    """
    dense = saved = 0.0
    by_denoiser: dict[Denoiser, list[tuple[Slot, Claim]]] = {}
    for denoiser, slot, claim in claims:
        if not claim.method.adds:
            by_denoiser.setdefault(denoiser, []).append((slot, claim))
    for denoiser, held in by_denoiser.items():
        paid = {slot.path: claim.tally.pairs * slot.heads for slot, claim in held}
        roles = {slot.role for slot, _ in held}
        dense += sum(paid.values())
        dense += sum(
            _left_out(denoiser, found, held)
            for found in denoiser.sites
            if found.role in roles and found.path not in paid
        )
        for slot, claim in held:
            heads = slot.heads if claim.heads is None else len(claim.heads)
            for site, pairs in claim.tally.ran_pairs.items():
                density = claim.method.density(site, cache)
                if density is None:
                    return None
                saved += pairs * heads * (1 - density.executed)
    return 1 - saved / dense if dense else None


def _left_out(denoiser: Denoiser, found: FoundSite, held: list[tuple[Slot, Claim]]) -> float:
    """Pairs of a layer without a claim: those of a patched layer of its role, scaled to the tokens of its own level."""
    others = [(slot, claim) for slot, claim in held if slot.role == found.role]
    same = [(slot, claim) for slot, claim in others if slot.queries == found.queries]
    slot, claim = max(same or others, key=lambda one: one[1].tally.pairs)
    streams = slot.watch.streams
    mine, its = streams.get(found.queries), streams.get(slot.queries)
    scale = 1.0 if mine is None or its is None else (mine.length / its.length) ** (1 + (slot.queries in slot.keys))
    return claim.tally.pairs * scale * (denoiser.family.heads(found.module) or slot.heads)
