"""The gate: the only room that knows how Diffusers' models reach attention."""

from __future__ import annotations

from genkit.families import FamilyInfo, families
from genkit.patching.first_step import Check, Checked, TooFarError
from genkit.patching.handle import PatchHandle, patch
from genkit.patching.meter import AttentionCost
from genkit.patching.parts import Part
from genkit.patching.positions import Positions, time_shift, unrotated
from genkit.patching.processors import attn_processors
from genkit.patching.removal import patches, unpatch
from genkit.patching.report import Description, Report
from genkit.patching.rotary import rotary_base
from genkit.patching.schedule import Schedule
from genkit.patching.targets import why_not
from genkit.patching.watch import Watch

__all__ = [
    "AttentionCost",
    "Check",
    "Checked",
    "Description",
    "FamilyInfo",
    "Part",
    "PatchHandle",
    "Positions",
    "Report",
    "Schedule",
    "TooFarError",
    "Watch",
    "attn_processors",
    "families",
    "patch",
    "patches",
    "rotary_base",
    "time_shift",
    "unpatch",
    "unrotated",
    "why_not",
]
