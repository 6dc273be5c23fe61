"""Which token of a source prompt stands for which of a target prompt, as in prompt-to-prompt (Needleman-Wunsch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genkit.errors import UsageError, counted

if TYPE_CHECKING:
    import torch

_MATCH, _MISMATCH, _GAP = 1, -1, 0


@dataclass(frozen=True)
class Alignment:
    """Partners of the target's tokens.

    Args:
        source: per target token the position of its source partner, or None.
        source_length: number of source tokens.

    Example:
        >>> found = align([1, 7, 8, 2], [1, 7, 9, 8, 2])
        >>> found.source
        (0, 1, None, 2, 3)
        >>> found.matched, found.gaps()
        ((0, 1, 3, 4), (((2,), ()),))
    """

    source: tuple[int | None, ...]
    source_length: int

    @property
    def matched(self) -> tuple[int, ...]:
        """Target positions with a partner."""
        return tuple(position for position, partner in enumerate(self.source) if partner is not None)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every partnership, in the order of the target."""
        return tuple((partner, position) for position, partner in enumerate(self.source) if partner is not None)

    def padded(self, length: int) -> Alignment:
        """The same for prompts padded to ``length`` tokens: padding stands for the padding at its own place.

        Raises:
            UsageError: ``length`` below that of either prompt.
        """
        if length < max(len(self.source), self.source_length):
            raise UsageError(
                f"alignment: prompts of {self.source_length} and {counted(len(self.source), 'token')} do not "
                f"fit {length}"
            )
        return Alignment((*self.source, *range(len(self.source), length)), length)

    def gaps(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """(target positions, source positions) of every run of target tokens without a partner; the source positions
        are those between the partners on both sides."""
        found = []
        run: list[int] = []
        before = -1
        for position, partner in enumerate((*self.source, self.source_length)):
            if partner is None:
                run.append(position)
                continue
            if run:
                found.append((tuple(run), tuple(range(before + 1, partner))))
            run, before = [], partner
        return tuple(found)

    def filled(self, source_states: torch.Tensor, target_states: torch.Tensor) -> Alignment:
        """With one more partnership per gap: the pair whose text states are most alike (InfEdit).

        Args:
            source_states: (source tokens, C) of the text encoder. target_states: (target tokens, C).
        """
        import torch

        partners = list(self.source)
        for targets, sources in self.gaps():
            if not sources:
                continue
            mine, others = (
                torch.nn.functional.normalize(states[list(places)].float(), dim=-1)
                for states, places in ((target_states, targets), (source_states, sources))
            )
            best = int((mine @ others.T).argmax())
            partners[targets[best // len(sources)]] = sources[best % len(sources)]
        return Alignment(tuple(partners), self.source_length)


def align(source: Sequence[int], target: Sequence[int]) -> Alignment:
    """Align two prompts by their token ids: match +1, mismatch -1, gap 0.

    Args:
        source, target: token ids without padding; ids of start and end tokens align like words.

    Cost: source x target steps of plain arithmetic.
    """
    rows, columns = len(source) + 1, len(target) + 1
    score = [[_GAP * (i + j) if not (i and j) else 0 for j in range(columns)] for i in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            pair = _MATCH if source[i - 1] == target[j - 1] else _MISMATCH
            score[i][j] = max(score[i][j - 1] + _GAP, score[i - 1][j] + _GAP, score[i - 1][j - 1] + pair)
    partners: list[int | None] = [None] * len(target)
    i, j = len(source), len(target)
    while i and j:
        if score[i][j] == score[i][j - 1] + _GAP:
            j -= 1
        elif score[i][j] == score[i - 1][j] + _GAP:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return Alignment(tuple(partners), len(source))


def replacement(source_words: Sequence[Sequence[int]], target_words: Sequence[Sequence[int]], length: int):
    """The matrix of a word swap (prompt-to-prompt "replace"): target maps = source maps @ matrix.

    Args:
        source_words, target_words: token positions of the words that stand for each other, pair by pair.
        length: tokens of both prompts, padding included.

    Returns:
        float32 (source, target). Tokens outside the words stand for themselves, shifted by the length that the words
        before them gained; the tokens of a swapped word share evenly.

    Raises:
        UsageError: words that are not paired, empty or out of order.
    """
    import torch

    if len(source_words) != len(target_words):
        raise UsageError(
            f"replacement: {counted(len(source_words), 'source word')} for {counted(len(target_words), 'target word')}"
        )
    table = torch.zeros(length, length)
    i = j = 0
    for mine, theirs in sorted(zip(source_words, target_words, strict=True), key=lambda pair: tuple(pair[0])):
        if not mine or not theirs or mine[0] - i != theirs[0] - j or mine[0] < i:
            raise UsageError(
                "replacement: the two prompts must be equal word for word outside of the swapped words; use refine for "
                "prompts of different structure"
            )
        while i < mine[0]:
            table[i, j] = 1
            i, j = i + 1, j + 1
        share = 1.0 if len(mine) == len(theirs) else 1 / len(theirs)
        if len(mine) == len(theirs):
            table[list(mine), list(theirs)] = 1
        else:
            table[mine[0] : mine[-1] + 1, theirs[0] : theirs[-1] + 1] = share
        i, j = mine[-1] + 1, theirs[-1] + 1
    while i < length and j < length:
        table[i, j] = 1
        i, j = i + 1, j + 1
    for position in range(j, length):
        table[position, position] = 1
    return table
