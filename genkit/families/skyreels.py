"""SkyReels-V2: frames per second; its attention has no record yet."""

from __future__ import annotations

from genkit.families.base import without_attention
from genkit.families.facts import PipelineFacts

FAMILY = without_attention("SkyReels-V2", ("SkyReelsV2Pipeline",), PipelineFacts(pattern="SkyReels.*", fps="24"))
