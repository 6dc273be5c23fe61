"""Embeddings of new words as parameters of their own: the encoder's table stays as it is, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class WordTable(nn.Module):
    """One row per word; put on a text encoder, it answers for their numbers in place of the encoder's table.

    Args:
        rows: (words, width), where training begins.

    Adam's weight decay and moments reach these rows alone. Zeroing the gradients of a whole table's other rows would
    leave them to the decay.
    """

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone().float() if not rows.is_meta else torch.empty_like(rows).float())
        self._ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, encoder: Any, starts: Sequence[int]) -> WordTable:
        """Rows that begin as those of known words; nothing is put on the encoder yet."""
        weight = encoder.get_input_embeddings().weight
        return cls(weight[list(starts)])

    def put_on(self, tokenizer: Any, encoder: Any, words: Sequence[str], starts: Sequence[int]) -> None:
        """Teach a tokenizer the words, and let the encoder read these rows for them; for the life of the pipeline."""
        tokenizer.add_tokens(list(words))
        self._ids = tuple(int(number) for number in tokenizer.convert_tokens_to_ids(list(words)))
        known = dict(zip(self._ids, starts, strict=True))
        weight = encoder.get_input_embeddings().weight
        for layer in encoder.modules():
            # T5 reads through a second layer that shares the table.
            if isinstance(layer, nn.Embedding) and layer.weight is weight:
                self._put_on(layer, known)

    def _put_on(self, layer: nn.Module, known: dict[int, int]) -> None:
        """Answer for one layer; ``known``: number of a new word -> that of the word it begins with."""
        asked: list[torch.Tensor] = []

        def with_known(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            # The table has no rows of these numbers: it is asked for those of the known words, which are replaced.
            numbers = given[0]
            asked[:] = [numbers]
            for new, start in known.items():
                numbers = torch.where(numbers == new, start, numbers)
            return (numbers, *given[1:])

        def with_rows(module: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            numbers = asked.pop()
            for row, new in zip(self.rows, self._ids, strict=True):
                output = torch.where((numbers == new)[..., None], row.to(output), output)
            return output

        layer.register_forward_pre_hook(with_known)
        layer.register_forward_hook(with_rows)

    def embeddings(self, words: Sequence[str]) -> dict[str, torch.Tensor]:
        """The rows by word, copies on the CPU."""
        return {word: row.detach().cpu().clone() for word, row in zip(words, self.rows, strict=True)}
