"""What genkit knows about Diffusers model classes, as data: one record per family."""

from __future__ import annotations

from genkit.patching.families.base import Family, FamilyInfo, families, family_of

__all__ = ["Family", "FamilyInfo", "families", "family_of"]
