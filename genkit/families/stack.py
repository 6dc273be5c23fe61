"""How tokens go through a denoiser's blocks. Data alone: neither torch nor Diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BlockStack:
    """What training has to know to let some tokens skip a span of blocks.

    Args:
        blocks: names of the lists of blocks, in the order of execution.
        tokens: argument of a block's forward with the tokens of the picture or clip (B, N, C), without text.
        text: argument with the text's tokens (B, E, C) that are attended jointly with them; "" = there are none.
        rotary: arguments with rotary tables, of N tokens or of N + E in the order of attention; a block has one of
            them, or none where this is empty.
        mask: argument with an attention mask whose last axis is the keys, N or N + E; "" = there is none.
        per_token: arguments that may have the tokens as second axis.
        output: place of the tokens among a block's outputs; None = they are the output.
        other: (model) -> how many of the last blocks get other tokens than the blocks before, which no span reaches.
        classes: model classes of the family that it is for; empty = all of them.
    """

    blocks: tuple[str, ...]
    tokens: str = "hidden_states"
    text: str = "encoder_hidden_states"
    rotary: tuple[str, ...] = ("image_rotary_emb",)
    mask: str = ""
    per_token: tuple[str, ...] = ()
    output: int | None = 0
    other: Callable[[Any], int] | None = None
    classes: tuple[str, ...] = ()
