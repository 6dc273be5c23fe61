"""The gate: the only room that knows how Diffusers' models reach attention."""

from __future__ import annotations

from genkit.patching.families import Family, families
from genkit.patching.handle import Part, PatchHandle, patch
from genkit.patching.report import Description, Report
from genkit.patching.schedule import Schedule

__all__ = ["Description", "Family", "Part", "PatchHandle", "Report", "Schedule", "families", "patch"]
