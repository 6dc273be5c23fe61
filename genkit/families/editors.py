"""Pipelines of families without a record whose calls do not tell that they work on a picture, video or sound."""

from __future__ import annotations

from genkit.families.base import without_attention
from genkit.families.facts import PipelineFacts

_NAMES = ("StableUnCLIPImg2ImgPipeline",)
FAMILY = without_attention("Editors", _NAMES, PipelineFacts(pattern="|".join(_NAMES), needs_input=".*"))
