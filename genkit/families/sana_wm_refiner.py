"""The LTX-2 refiner of SANA-WM: cross-attention to text; its video grid is not told."""

from __future__ import annotations

from genkit.families.base import Family, SiteRule
from genkit.families.facts import PipelineFacts

FAMILY = Family(
    name="SANA-WM refiner",
    classes=("SanaWMLTX2RefinerTransformer3DModel",),
    pipelines=(),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", queries="video", keys=("text",)),),
    streams=lambda model, args: {},
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="not told: a call has rotary tables in place of sizes",
    text="apart",
    video=True,
    unserved={"self": "no argument of a call tells the token grid of its self-attention, only rotary tables come"},
    facts=PipelineFacts(pattern="SanaWMRefiner.*"),
    notes="It has no pipeline class; SanaWMPipeline runs it. Its audio attentions are never called.",
)
