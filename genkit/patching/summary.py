"""What a patch covers and what it did, gathered from its layers into a Description and a Report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.attention.cache import PatchCache
from genkit.families.base import FoundSite
from genkit.patching import first_step
from genkit.patching.held import Held
from genkit.patching.report import Description, Report, SiteReport, SiteRow, mean_density
from genkit.patching.targets import Denoiser
from genkit.patching.work import work_share

if TYPE_CHECKING:
    from collections.abc import Sequence


def describe(denoisers: Sequence[Denoiser], held: Sequence[Held], schedules: Sequence[Any]) -> Description:
    """Every site of the roles that are patched, and the names of the others."""
    rows: list[SiteRow] = []
    untouched: list[str] = []
    for denoiser in denoisers:
        own: dict[str, list[Held]] = {}
        for each in held:
            if each.denoiser is denoiser:
                own.setdefault(each.layer.path, []).append(each)
        roles = {found.role for found in denoiser.sites if found.path in own}
        for found in denoiser.sites:
            if found.role not in roles:
                untouched.append(denoiser.prefix + found.path)
            elif found.path not in own:
                rows.append(_empty_row(denoiser, found))
            else:
                rows += [_row(each, denoiser, found) for each in own[found.path]]
    family = " + ".join(dict.fromkeys(denoiser.family.name for denoiser in denoisers))
    return Description(family, " | ".join(dict.fromkeys(map(str, schedules))), tuple(rows), tuple(untouched))


def _empty_row(denoiser: Denoiser, found: FoundSite) -> SiteRow:
    heads = denoiser.family.heads(found.module)
    return SiteRow(denoiser.prefix + found.path, found.role, denoiser.layer(found)[0], heads, None)


def _row(each: Held, denoiser: Denoiser, found: FoundSite) -> SiteRow:
    assignment, layer = each.assignment, each.layer
    method = assignment.method.describe()
    start = (layer.name, found.role, denoiser.layer(found)[0], layer.heads, method)
    adds = assignment.method.adds
    if not assignment.counts.sites:
        return SiteRow(*start, adds=adds)
    site = list(assignment.counts.sites)[-1]
    density = assignment.method.density(site, assignment.cache)
    return SiteRow(*start, site.layout.grid, site.layout.length, site.key_layout.length, density, adds)


def report(
    held: Sequence[Held], cache: PatchCache, forwards_before: int, checking: first_step.Check | None = None
) -> Report:
    """Counts of all layers, and what the user should know about layers that no call reached."""
    models = list(dict.fromkeys(each.patched for each in held))
    moments = [model.state.moment for model in models if model.state.moment is not None]
    steps = next((moment.steps for moment in moments if moment.steps is not None), None)
    sites = tuple(_site_report(each, cache) for each in held)
    came = forwards(held) - forwards_before
    methods = dict.fromkeys(each.assignment.method for each in held) if came > 0 else ()
    own = dict.fromkeys(text for method in methods for text in method.remarks(cache))
    checks = [each.assignment.checked for each in held if each.assignment.checked is not None]
    remarks = (*own, *_remarks(held, sites), *first_step.remarks(checks, checking))
    return Report.of_sites(sites, came, steps, work_share(held, cache), remarks, tuple(checks))


def forwards(held: Sequence[Held]) -> int:
    """Denoiser calls since the models were first patched."""
    return sum(model.state.forwards for model in dict.fromkeys(each.patched for each in held))


def _site_report(each: Held, cache: PatchCache) -> SiteReport:
    assignment, counts = each.assignment, each.assignment.counts
    densities = [(assignment.method.density(site, cache), calls) for site, calls in counts.sites.items()]
    return SiteReport(
        name=each.layer.name,
        role=each.layer.role,
        layer=each.layer.layer,
        method=assignment.method.describe(),
        ran=counts.ran,
        outside=counts.outside,
        declined=dict(counts.declined),
        skipped=counts.skipped,
        density=mean_density(densities),
        seconds=counts.method_time.seconds(),
        own_seconds=counts.own_time.seconds(),
        steps=tuple(sorted(counts.steps)),
        branches=tuple(sorted(counts.branches)),
        remark=_remark(each),
        adds=assignment.method.adds,
    )


def _remark(each: Held) -> str:
    """Why the layer may be out of reach; empty when attention calls come as they should."""
    replaced = each.layer.replaced(each.module)
    if replaced:
        return replaced
    state = each.patched.state
    if state.run_forwards and each.layer.reached != state.run:
        return f"no attention call came in the latest {state.run_forwards} denoiser calls"
    return ""


def _remarks(held: Sequence[Held], sites: Sequence[SiteReport]) -> tuple[str, ...]:
    """One line per kind of remark, with the number of layers and the first of them."""
    by_text: dict[str, list[str]] = {}
    for site in sites:
        if site.remark:
            by_text.setdefault(site.remark, []).append(site.name)
    lines = []
    for text, names in by_text.items():
        whom = f"all {len(names)} layers" if len(names) == len(held) else f"{len(names)} of {len(held)} layers"
        lines.append(f"{whom} ({names[0]}{', ...' if len(names) > 1 else ''}): {text}")
    return tuple(lines)
