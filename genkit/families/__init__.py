"""What genkit knows about Diffusers model classes, as data: one record per family.

``genkit.families()`` lists them: the package has the name of the public function, so it can be called like it.
"""

from __future__ import annotations

import sys
import types

from genkit.families.base import Family
from genkit.families.lookup import FamilyInfo, families, family_of

__all__ = ["Family", "FamilyInfo", "families", "family_of"]


class _Families(types.ModuleType):
    """The type of this package: importing any file of it must not hide the function ``genkit.families``."""

    def __call__(self) -> tuple[FamilyInfo, ...]:
        return families()


sys.modules[__name__].__class__ = _Families
