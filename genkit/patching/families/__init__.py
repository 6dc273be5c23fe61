"""What genkit knows about Diffusers model classes, as data: one record per family."""

from __future__ import annotations

from genkit.patching.families.base import Family, SiteRule, diffusers_class, families, family_of, unwrap

__all__ = ["Family", "SiteRule", "diffusers_class", "families", "family_of", "unwrap"]
