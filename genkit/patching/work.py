"""How much attention work a patch leaves of dense attention's, what its schedule leaves dense included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from genkit.attention.cache import PatchCache
from genkit.families.base import FoundSite
from genkit.layout import TokenLayout
from genkit.patching.held import Held
from genkit.patching.targets import Denoiser


def work_share(held: Iterable[Held], cache: PatchCache) -> float | None:
    """Query-key pairs the machine paid for as a share of dense attention's, over all layers of the patched roles.

    Layers that the schedule leaves out count as dense, with as many calls as the patched ones; so do calls outside of
    the schedule's steps and branches, declined calls and heads left out. Methods that add to the attention are not
    counted.

    Returns:
        The share, or None when nothing ran or the density of a method that ran is unknown.
    """
    dense = saved = 0.0
    by_denoiser: dict[Denoiser, list[Held]] = {}
    for each in held:
        if not each.assignment.method.adds:
            by_denoiser.setdefault(each.denoiser, []).append(each)
    for denoiser, own in by_denoiser.items():
        paid = {each.layer.path: each.assignment.counts.pairs * (each.layer.heads or 0) for each in own}
        roles = {each.layer.role for each in own}
        dense += sum(paid.values())
        dense += sum(
            _left_out(denoiser, found, own)
            for found in denoiser.sites
            if found.role in roles and found.path not in paid
        )
        for each in own:
            assignment = each.assignment
            if assignment.method.adds:
                continue
            for site, pairs in assignment.counts.ran_pairs.items():
                density = assignment.method.density(site, cache)
                if density is None:
                    return None
                saved += pairs * site.heads * (1 - density.executed)
    return 1 - saved / dense if dense else None


def _left_out(denoiser: Denoiser, found: FoundSite, held: Sequence[Held]) -> float:
    """Pairs of a layer without a method: those of a patched layer of its role, scaled to its own level's tokens."""
    others = [each for each in held if each.layer.role == found.role]
    same = [each for each in others if each.layer.queries == found.queries]
    most = max(same or others, key=lambda each: each.assignment.counts.pairs)
    layer, streams = most.layer, most.patched.state.streams
    mine, its = streams.get(found.queries), streams.get(layer.queries)
    scale = 1.0
    if isinstance(mine, TokenLayout) and isinstance(its, TokenLayout):
        scale = (mine.length / its.length) ** (1 + (layer.queries in layer.keys))
    return most.assignment.counts.pairs * scale * (denoiser.family.heads(found.module) or layer.heads or 0)
