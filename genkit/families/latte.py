"""Latte: frames per second; its attention has no record yet."""

from __future__ import annotations

from genkit.families.base import without_attention
from genkit.families.facts import PipelineFacts

FAMILY = without_attention("Latte", ("LattePipeline",), PipelineFacts(pattern="Latte.*", fps="8"))
