"""Two prompts compared token by token: which tokens stand for each other, and where words are."""

from __future__ import annotations

from typing import Any

import torch

from genkit.control.alignment import Alignment, align
from genkit.control.spans import text_parts, text_tokens


def aligned(
    pipe: Any,
    source: str,
    target: str,
    states: tuple[torch.Tensor, torch.Tensor] | None = None,
    slots: int | None = None,
    fill: bool = True,
) -> Alignment:
    """Which source token stands for which target token, over all text tokens of the denoiser; padding for itself.

    Args:
        pipe: whose tokenizers read the prompts.
        source, target: the prompts.
        states: (tokens, C) of both, as the denoiser reads them: in every gap of the alignment the pair that is most
            alike is paired too (InfEdit). None leaves gaps open.
        slots: text tokens, where they can be chosen.
        fill: without it gaps stay open although states are given, which then tell the number of tokens alone.
    """  # fmt: skip
    partners: dict[int, int | None] = {}
    for part in text_parts(pipe, slots):
        lists = [_ids(part, prompt) for prompt in (source, target)]
        found = align(*lists)
        if states is not None and fill:
            found = found.filled(*(each[part.start :][: len(ids)] for each, ids in zip(states, lists, strict=True)))
        length = part.length or max(map(len, lists))
        for place, partner in enumerate(found.padded(max(length, *map(len, lists))).source):
            partners[part.start + place] = None if partner is None else part.start + partner
    last = max(partners) + 1
    if states is not None:
        last = len(states[0])
    return Alignment(tuple(partners.get(place, place) for place in range(last)), last)


def _ids(part: Any, prompt: str) -> list[int]:
    """Token ids of a prompt as a text encoder reads it, without padding."""
    ids = part.tokenizer(part.template.replace("{}", prompt, 1))["input_ids"][part.dropped :]
    return list(ids[: part.length] if part.length else ids)


def positions(pipe: Any, prompt: str, words: tuple[str, ...], slots: int | None = None) -> tuple[int, ...]:
    """Positions of all these words among the denoiser's text tokens, each once.

    Raises:
        UsageError: a word that the prompt does not have, or of which the tokenizer makes nothing.
    """
    found = [place for word in words for place in text_tokens(pipe, prompt, word, slots=slots)]
    return tuple(dict.fromkeys(found))
