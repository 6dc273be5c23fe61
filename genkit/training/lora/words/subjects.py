"""The subjects of one picture: how the caption calls them, their new words, and the prompts that name some of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from genkit.control.spans import find_words, text_parts
from genkit.errors import UnsupportedError, UsageError, shown
from genkit.families.training.base import IMAGE, Training, Words
from genkit.lora.words import name_of, tokenizer_of
from genkit.training.lora.words.settings import UNIFORM, pairs_of, word_of

#: Least share of a word in reweighted sampling, before the shares are brought to a sum of 1.
FLOOR = 0.1
#: Share of steps whose prompt has all words, in reweighted sampling.
ALL = 1 / 3
_BETWEEN = {"and", ",", "", "&"}


@dataclass(frozen=True)
class Subjects:
    """What is learned of a picture.

    Args:
        phrases: as the caption writes the subjects, in its order.
        starts: a known word for each, whose embedding the new one begins with.
        before, after: what the caption says around them.
    """

    phrases: tuple[str, ...]
    starts: tuple[str, ...]
    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, texts: tuple[str, ...], caption: str) -> Subjects:
        """The subjects of a caption.

        Args:
            texts: ``phrase=start``, see :func:`pairs_of`.
            caption: names every one of them once, one after the other, with "and" or commas between.

        Raises:
            UsageError: a subject that is not in the caption or in it twice, or other words between two of them.
        """
        found = []
        for phrase, start in pairs_of(texts):
            try:
                places = find_words(caption, phrase, what="--learn-words: subject")
            except UsageError as error:
                raise UsageError(
                    f"{error}; the picture's caption is {shown(caption)}, and must name every subject"
                ) from error
            if len(places) > 1:
                raise UsageError(f"--learn-words: the caption {shown(caption)} names {shown(phrase)} more than once")
            found.append((places[0], phrase, start))
        found.sort()
        for (one, first, _), (other, second, _) in itertools.pairwise(found):
            between = caption[one[1] : other[0]].lower()
            if {word.strip() for word in between.replace(",", " , ").split(" ")} - _BETWEEN or one[1] > other[0]:
                raise UsageError(
                    f"--learn-words: between {shown(first)} and {shown(second)} the caption says "
                    f"{shown(between.strip())}; prompts of single subjects are made of it, so allowed there: 'and' and "
                    "commas. Put what is said of all before the first or behind the last subject"
                )
        begin, end = found[0][0][0], found[-1][0][1]
        return cls(
            tuple(caption[one:other] for (one, other), _, _ in found), tuple(start for _, _, start in found),
            caption[:begin], caption[end:],
        )  # fmt: skip

    @property
    def words(self) -> tuple[str, ...]:
        """The new words."""
        return tuple(word_of(phrase) for phrase in self.phrases)

    def prompt(self, order: Sequence[int]) -> str:
        """The caption with some of the subjects, in an order."""
        return self.before + " and ".join(self.phrases[index] for index in order) + self.after

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """Every choice of subjects in every order."""
        numbers = range(len(self.phrases))
        return tuple(
            order for count in range(1, len(self.phrases) + 1) for order in itertools.permutations(numbers, count)
        )

    @property
    def everything(self) -> tuple[int, ...]:
        """All subjects as the caption has them."""
        return tuple(range(len(self.phrases)))

    def drawn(self, sampling: str, losses: Sequence[float], rng: np.random.Generator) -> tuple[int, ...]:
        """Which subjects the prompt of a step names, in random order.

        Args:
            sampling: ``uniform``: every choice of subjects is equally likely. ``reweighted``: all of them in a third
                of the steps, else a single one in proportion to its loss, at least :data:`FLOOR` before the shares are
                brought to a sum of 1.
            losses: how far every subject's attention has been from its part; all 0 where nothing is known.
            rng: source of randomness.
        """
        count = len(self.phrases)
        if sampling == UNIFORM:
            chosen = 1 + int(rng.integers(2**count - 1))
            members = [index for index in range(count) if chosen >> index & 1]
        elif rng.random() < ALL:
            members = list(range(count))
        else:
            total = sum(losses)
            shares = np.array([max(loss / total if total > 0 else 1 / count, FLOOR) for loss in losses])
            members = [int(rng.choice(count, p=shares / shares.sum()))]
        return tuple(int(index) for index in rng.permutation(members))


def words_record(training: Training, name: str) -> Words:
    """How new words are learned by a family.

    Raises:
        UnsupportedError: a family of which that is not known, or one that makes no pictures.
    """
    if training.words is None or training.streams != (IMAGE,):
        raise UnsupportedError(
            f"--learn-words: how {name} learns new words from a picture is not known here (which text encoder takes "
            "them, and whose attention finds them); known: StableDiffusionPipeline and FluxPipeline"
        )
    return training.words


def check_new(pipeline: Any, words: Words, subjects: Subjects) -> tuple[int, ...]:
    """Refuse words that are none to be learned; the numbers of the known words they begin with.

    Args:
        pipeline: with its tokenizers; nothing in it changes.

    Raises:
        UsageError: a new word that is known, a start that is not, or two words whose files would have one name.
    """
    tokenizer = tokenizer_of(pipeline, words.part)
    kind = type(tokenizer).__name__
    names: dict[str, str] = {}
    for word in subjects.words:
        pieces = pieces_of(tokenizer, word)
        if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:
            raise UsageError(
                f"--learn-words: {shown(word)} is a word that {kind} knows already; take one that means nothing, "
                f"such as {shown(f'<{word}>')}"
            )
        other = names.setdefault(name_of(word), word)
        if other != word:
            raise UsageError(f"--learn-words: {shown(other)} and {shown(word)} differ too little for names of files")
    starts = []
    for start in subjects.starts:
        pieces = pieces_of(tokenizer, start)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
            raise UsageError(
                f"--learn-words: {shown(start)} is not one token of {kind}, which makes {len(pieces)} of it; begin "
                "with a common word for the kind of thing"
            )
        starts.append(pieces[0])
    return tuple(starts)


def pieces_of(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word alone."""
    return list(tokenizer(word, add_special_tokens=False)["input_ids"])


def positions_of(
    pipeline: Any, words: Words, subjects: Subjects, slots: int | None
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Where the new words are among the denoiser's text tokens, for every order of :attr:`Subjects.orders`.

    Raises:
        UsageError: a prompt that is too long for them.
    """
    own = tokenizer_of(pipeline, words.part)
    taught = copy.deepcopy(own)
    taught.add_tokens(list(subjects.words))
    (part,) = [part for part in text_parts(pipeline, slots) if part.tokenizer is own]
    known = part.__class__(taught, part.start, part.length, part.template, part.dropped)
    found = {}
    for order in subjects.orders:
        prompt = subjects.prompt(order)
        places = [known.tokens(prompt, find_words(prompt, subjects.words[index])) for index in order]
        found[order] = tuple(place[0] for place in places)
    return found
