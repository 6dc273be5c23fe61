"""Models of sound alone: the tokens' grid is the time axis, (T, 1, 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from genkit.families.base import MAIN, Family, SiteRule, Streams, Untold, grid_with, shape
from genkit.families.facts import PipelineFacts


def _time(
    family: str, axis: int, before: Callable[[Any], tuple[tuple[str, int], ...]] = lambda model: ()
) -> Callable[[Any, Mapping[str, Any]], Streams]:
    """Rule of ``hidden_states`` with time as axis number ``axis``, cut into patches; the last one may be filled up.

    Args:
        family: name for messages.
        axis: number of the time axis.
        before: model -> tokens in front of those of time.
    """

    def streams(model: Any, args: Mapping[str, Any]) -> Streams:
        length = shape(args, "hidden_states", 3, family)[axis]
        tokens = -(-length // getattr(model.config, "patch_size", 1))
        return {MAIN: grid_with((tokens, 1, 1), before=before(model))}

    return streams


STABLE_AUDIO = Family(
    name="Stable Audio",
    classes=("StableAudioDiTModel",),
    pipelines=("StableAudioPipeline",),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.attn1", "self"),
        SiteRule(r"transformer_blocks\.\d+\.attn2", "cross", keys=("text",)),
    ),
    streams=_time("Stable Audio", 2, lambda model: (("global", 1),)),
    reads=("hidden_states",),
    sample="hidden_states",
    order=("transformer_blocks",),
    grid="time of hidden_states (B, C, T); one token of global conditions stands before it",
    text="apart",
    video=True,
    makes="sound",
    facts=PipelineFacts(pattern="StableAudioPipeline"),
    notes="Both branches are computed in one call.",
)

STABLE_AUDIO_3 = replace(
    STABLE_AUDIO,
    name="Stable Audio 3",
    classes=("StableAudio3DiTModel",),
    pipelines=("StableAudio3Pipeline", "StableAudio3AudioToAudioPipeline", "StableAudio3InpaintPipeline"),
    rules=(
        SiteRule(r"transformer_blocks\.\d+\.self_attn", "self"),
        SiteRule(r"transformer_blocks\.\d+\.cross_attn", "cross", keys=("text",)),
    ),
    streams=_time("Stable Audio 3", 2, lambda model: (("memory", model.config.num_memory_tokens),)),
    grid="time of hidden_states (B, C, T) divided by patch_size; learned tokens before it are 'memory'",
    facts=PipelineFacts(pattern="StableAudio3.*", needs_input="StableAudio3(?:AudioToAudio|Inpaint)Pipeline"),
    notes="Attention is differential: each layer makes two calls and subtracts them, and a method serves both. Padding "
    "of the text is replaced by a learned token, which takes part. Both branches are computed in one call.",
)

ACE_STEP = replace(
    STABLE_AUDIO,
    name="ACE-Step",
    classes=("AceStepTransformer1DModel",),
    pipelines=("AceStepPipeline",),
    rules=(
        SiteRule(r"layers\.\d+\.self_attn", "self"),
        SiteRule(r"layers\.\d+\.cross_attn", "cross", keys=("text",)),
    ),
    streams=_time("ACE-Step", 1),
    order=("layers",),
    grid="time of hidden_states (B, T, C) divided by patch_size",
    facts=PipelineFacts(pattern="AceStep.*"),
    notes="Every second layer has a window of its own in time and keeps it, unless the window covers everything. Both "
    "branches are computed in one call.",
)

_LONGCAT_TIME = _time("LongCat-AudioDiT", 1)


def _longcat(model: Any, args: Mapping[str, Any]) -> Streams:
    """The sound; the end of a shorter one in a batch is hidden, and a window there would hold no key at all."""
    streams = _LONGCAT_TIME(model, args)
    mask = args.get("attention_mask")
    if mask is None or bool(mask.all()):
        return {**streams, "own": streams[MAIN]}
    return {**streams, "own": Untold("its attention mask hides the end of some sounds of the batch")}


LONGCAT_AUDIO = replace(
    STABLE_AUDIO,
    name="LongCat-AudioDiT",
    classes=("LongCatAudioDiTTransformer",),
    pipelines=("LongCatAudioDiTPipeline",),
    rules=(
        SiteRule(r"blocks\.\d+\.self_attn", "self", queries="own"),
        SiteRule(r"blocks\.\d+\.cross_attn", "cross", keys=("text",)),
    ),
    streams=_longcat,
    reads=("hidden_states", "attention_mask"),
    order=("blocks",),
    grid="time of hidden_states (B, T, C)",
    facts=PipelineFacts(pattern="LongCatAudioDiT.*"),
    notes="Padding of the text is hidden by a key mask; where sounds of a batch differ in length, self-attention stays "
    "the model's own. The pipeline calls the model twice per step and announces "
    "nothing. No attention processors can be set, so use genkit.patch.",
)

MINIMAX_MUSIC = replace(
    STABLE_AUDIO,
    name="MiniMax-Music 3",
    classes=("MiniMaxMusic3Transformer1DModel",),
    pipelines=("MiniMaxMusic3ModularPipeline",),
    rules=(SiteRule(r"transformer_blocks\.\d+\.attn", "self"),),
    streams=_time("MiniMax-Music 3", 2, lambda model: (("time", 1),)),
    grid="time of hidden_states (B, C, T); one token of the noise level stands before it",
    facts=PipelineFacts(pattern="MiniMaxMusic3.*"),
    notes="Conditions are added frame by frame, there is no cross-attention. No attention processors can be set, so "
    "use genkit.patch.",
)

FAMILIES = (STABLE_AUDIO, STABLE_AUDIO_3, ACE_STEP, LONGCAT_AUDIO, MINIMAX_MUSIC)
