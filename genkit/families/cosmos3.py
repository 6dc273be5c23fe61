"""Cosmos 3: text that reads causally, and video, sound and actions that ask text and each other; one packed sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Family, SiteRule, Streams, Untold, grid_with
from genkit.families.facts import PipelineFacts


def _streams(model: Any, args: Mapping[str, Any]) -> Streams:
    shapes, places = args.get("vision_token_shapes"), args.get("vision_sequence_indexes")
    if not shapes or places is None:
        raise UnsupportedError(
            "Cosmos 3: the token grid follows from vision_token_shapes and vision_sequence_indexes, which this call of "
            "the model lacks"
        )
    if len(shapes) > 1:
        reason = f"its sequence holds {len(shapes)} pictures or videos, and a patch knows one grid"
        return {MAIN: Untold(reason), "keys": Untold(reason)}
    grid = tuple(int(size) for size in shapes[0])
    text, total = int(args["und_len"]), int(args["sequence_length"])
    start, tokens = int(places[0]), grid[0] * grid[1] * grid[2]
    if len(places) != tokens or int(places[-1]) != start + tokens - 1:
        reason = f"the {len(places)} places of its vision tokens are not one run of a {grid} grid"
        return {MAIN: Untold(reason), "keys": Untold(reason)}
    before, after = (("before", start - text),), (("after", total - start - tokens),)
    return {
        MAIN: grid_with(grid, before=before, after=after),
        "keys": grid_with(grid, before=((TEXT, text), *before), after=after),
    }


FAMILY = Family(
    name="Cosmos 3",
    classes=("Cosmos3OmniTransformer",),
    pipelines=("Cosmos3OmniPipeline",),
    rules=(SiteRule(r"layers\.\d+\.self_attn", "joint", keys=("keys",), some_calls=True),),
    streams=_streams,
    reads=("vision_token_shapes", "vision_sequence_indexes", "und_len", "sequence_length"),
    sample="vision_tokens",
    timestep="vision_timesteps",
    order=("layers",),
    grid="vision_token_shapes at vision_sequence_indexes; sound and actions are the segments 'before' and 'after'",
    text="first",
    video=True,
    branches=("cond", "uncond"),
    heads_attribute="num_attention_heads",
    projection_names=("add_q_proj", "add_k_proj", "add_v_proj"),
    facts=PipelineFacts(
        pattern="Cosmos3.*",
        fps="24",
        lora_targets=r"layers\.\d+\.self_attn\.(?:add_[qkv]_proj|to_add_out)",
    ),
    notes="Every layer also makes a causal call of the text among itself, which keeps the model's own attention. A "
    "sequence with several pictures or videos is left to the model too. The batch is always one sample.",
)
