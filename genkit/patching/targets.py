"""What can be patched: the denoisers of a pipeline, their attention sites, and reasons why a method does not fit."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from genkit.attention.method import Method
from genkit.attention.site import FOLDED, Site, among
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.base import FoundSite
from genkit.families.lookup import diffusers_class, family_of, records, unwrap
from genkit.layout import TokenLayout

if TYPE_CHECKING:
    from torch import nn

    from genkit.patching.parts import Part


class Denoiser:
    """A patchable model and its sites.

    Args:
        model: the Diffusers model.
        prefix: put before the names of its sites; "" for a bare model or a pipeline's only denoiser.
    """

    def __init__(self, model: nn.Module, prefix: str):
        self.model = weakref.ref(model)
        self.family = family_of(model)
        self.prefix = prefix
        self.sites = self.family.find_sites(model)
        totals: dict[str, int] = {}
        self._indices = {}
        for found in self.sites:
            self._indices[found.path] = totals.get(found.role, 0)
            totals[found.role] = self._indices[found.path] + 1
        self._totals = totals
        #: Roles of attention that this model has, of those of its family.
        self.roles = tuple(role for role in self.family.roles if role in totals)

    def layer(self, found: FoundSite) -> tuple[int, int]:
        """Index of a site among the layers of its role, and how many there are."""
        return self._indices[found.path], self._totals[found.role]

    def sites_for(self, part: Part) -> list[FoundSite]:
        """The sites a part can go on, before its schedule is looked at."""
        wanted = part.method.roles if part.roles is None else part.roles
        refused = {role: role_reason(part.method, role, self.family) for role in self.roles}
        return [found for found in self.sites if among(found.role, wanted) and refused[found.role] is None]


def find_denoisers(target: Any) -> list[Denoiser]:
    """The denoisers of a pipeline, or the bare model itself; UnsupportedError when genkit knows none of them."""
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        model = unwrap(target)
        if not hasattr(model, "named_modules"):
            raise UsageError(explain("patch target", type(target).__name__, "a Diffusers pipeline or denoiser"))
        return [Denoiser(model, "")]
    known = {cls for family in records() for cls in family.classes}
    models = {name: unwrap(part) for name, part in components.items() if hasattr(part, "named_modules")}
    chosen = {name: model for name, model in models.items() if diffusers_class(model) in known}
    if not chosen:
        likely = [name for name in ("transformer", "unet", "prior") if name in models] or list(models)
        found = ", ".join(f"{name} is {type(models[name]).__name__}" for name in likely)
        raise UnsupportedError(
            f"{type(target).__name__} has no denoiser genkit knows ({found or 'it has no models at all'}). "
            f"`genkit families` lists the {len(known)} classes it knows"
        )
    return [Denoiser(model, f"{name}." if len(chosen) > 1 else "") for name, model in chosen.items()]


def why_not(target: Any, method: Method) -> str | None:
    """Why a method cannot be put on a pipeline or model, or None when it can."""
    try:
        denoisers = find_denoisers(target)
    except UnsupportedError as error:
        return str(error)
    fits = any(role_reason(method, role, denoiser.family) is None for denoiser in denoisers for role in denoiser.roles)
    return None if fits else fits_nowhere(method, None, denoisers)


def role_reason(method: Method, role: str, family: Any) -> str | None:
    """Why a method never serves a role in a family: its own words for a small and a large example of such a site.

    A method that refuses only one of the two refuses a size, which shows when a call comes.
    """
    reasons = [method.why_not(site) for site in (_example(role, family, 1), _example(role, family, 4))]
    return reasons[0] if all(reasons) else None


def _example(role: str, family: Any, scale: int) -> Site:
    text = TokenLayout.sequence(16, "text")
    audio = TokenLayout.sequence(16 * scale, "audio")
    frames = 4 * scale if family.video and role != "spatial" else 1
    side = 1 if role == "temporal" else 8 * scale
    joint = 16 if role == "joint" else 0
    grid = TokenLayout.of_grid(frames, side, side, text=joint, text_first=family.text == "first")
    if family.timed and role in ("audio_to_video", "video_to_audio"):
        grid, audio = _timed(grid, frames), _timed(audio, 16 * scale)
    queries = grid if role in ("self", "joint", "cross", "audio_to_video", *FOLDED) else audio
    keys = {"cross": text, "audio_cross": text, "audio_to_video": audio, "video_to_audio": grid}.get(role, queries)
    return Site("example", 0, 1, role, 8, queries, keys)


def _timed(layout: TokenLayout, pieces: int) -> TokenLayout:
    """A layout whose tokens fill one second in equal pieces."""
    share = layout.length // pieces
    spans = tuple((token // share / pieces, (token // share + 1) / pieces) for token in range(layout.length))
    return TokenLayout(layout.grid, layout.segments, intervals=spans)


def fits_nowhere(method: Method, roles: tuple[str, ...] | None, denoisers: list[Denoiser]) -> str:
    """The refusal of a method that fits no site of any denoiser."""
    has = dict.fromkeys(role for denoiser in denoisers for role in denoiser.roles)
    names = ", ".join(dict.fromkeys(denoiser.family.name for denoiser in denoisers))
    asked = "" if roles is None else f" (asked for: {', '.join(roles)})"
    wanted = [role for role in has if among(role, roles or method.roles)]
    reasons = {role_reason(method, role, denoiser.family) for role in wanted for denoiser in denoisers} - {None}
    reasons |= {
        why
        for denoiser in denoisers
        for role, why in denoiser.family.unserved.items()
        if role in (roles or method.roles)
    }
    own = f": {'; '.join(sorted(reasons))}" if reasons else ""
    return (
        f"{method.name} fits no attention of this model{asked}: it works on {', '.join(method.roles)} attention, "
        f"{names} has {', '.join(has)}{own}"
    )
