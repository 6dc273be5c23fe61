"""The files that a LoRA run leaves: the LoRA as stock Diffusers loads it, and a method's own weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from genkit.attention.weights import PatchWeights
from genkit.lora.facts import Facts
from genkit.lora.pair import Pair
from genkit.lora.save import save_lora
from genkit.lora.words import save_words
from genkit.training.engine.keep import Export
from genkit.training.lora.adapter import Adapter

#: Files beside the LoRA: weights of attention methods, and of a stream's state.
ATTENTION, STATE = "attention.safetensors", "state.safetensors"


def lora_files(
    component: str,
    adapter: Adapter,
    facts: Facts,
    weights: PatchWeights | None = None,
    words: Mapping[str, torch.Tensor] | None = None,
    state: PatchWeights | None = None,
) -> Export:
    """What writes the present weights into a folder; every process must call this, for shards are gathered here.

    Args:
        component: part of the pipeline that was trained.
        adapter: on it.
        facts: what the LoRA file says about itself.
        weights: of attention methods that were trained too; None for none.
        words: embeddings of words that were learned too.
        state: of a stream's state that was trained too.
    """
    pairs: Mapping[str, Pair] = {path: pair.folded() for path, pair in adapter.pairs().items()}

    def write(folder: Path) -> None:
        save_lora(folder, {component: pairs}, facts)
        if weights is not None:
            weights.save(folder / ATTENTION)
        if state is not None:
            state.save(folder / STATE)
        if words:
            save_words(folder, words)

    return write
