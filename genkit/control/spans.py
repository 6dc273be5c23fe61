"""Where the words of a prompt are among the tokens a text encoder reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, explain, shown
from genkit.families.prompts import KNOWN, Reading, readings_of

Span = tuple[int, int]


def word_tokens(
    tokenizer: Any,
    prompt: str,
    word: str,
    *,
    occurrence: int | None = None,
    length: int | None = None,
    template: str = "{}",
    dropped: int = 0,
) -> tuple[int, ...]:
    """Positions of a word's tokens in the text that the denoiser reads.

    Args:
        tokenizer: of CLIP, T5, UMT5, Gemma, Qwen, ...: any Hugging Face tokenizer that gives character offsets.
        prompt: the whole prompt, without a template.
        word: a word or several words in a row, whole ones, upper and lower case alike.
        occurrence: which of several occurrences, from 0; None = all of them.
        length: tokens the pipeline keeps; default: the tokenizer's own limit.
        template: text around the prompt, ``{}`` in its place (HunyuanVideo and Qwen-Image wrap prompts).
        dropped: tokens at the start that the pipeline cuts off the encoder's answer.

    Raises:
        UsageError: a word that is not in the prompt, has no tokens of its own or lies beyond the tokens that are kept.

    Example (``toy-image`` reads "a", "red", "circle" as one token each, after a start token):
        >>> import genkit
        >>> pipe = genkit.load("toy-image")
        >>> word_tokens(pipe.tokenizer, "a large red circle", "red circle")
        (3, 4)
    """
    places = find_words(prompt, word, occurrence)
    return span_tokens(tokenizer, prompt, places, length=length, template=template, dropped=dropped)


def span_tokens(
    tokenizer: Any,
    prompt: str,
    places: Sequence[Span],
    *,
    length: int | None = None,
    template: str = "{}",
    dropped: int = 0,
) -> tuple[int, ...]:
    """Positions of the tokens of some characters of a prompt, given as (start, end); see :func:`word_tokens`."""
    begin = template.index("{}")
    text = template[:begin] + prompt + template[begin + 2 :]
    shifted = [(first + begin, last + begin) for first, last in places]
    word = shown(" ".join(prompt[first:last] for first, last in places[:1]))
    offsets = token_offsets(tokenizer, text)
    limit = (length if length is not None else _own_limit(tokenizer)) or len(offsets) + dropped
    found = tuple(
        number - dropped
        for number, offset in enumerate(offsets)
        if any(_overlap(offset, place, text) for place in shifted)
    )
    if not found:
        raise UsageError(f"word {word}: {type(tokenizer).__name__} makes no token of it; use another word")
    _check_known(tokenizer, text, [position + dropped for position in found], word)
    kept = tuple(position for position in found if 0 <= position < limit)
    if not kept:
        raise UsageError(
            f"word {word}: its tokens lie behind the {limit} tokens the model reads; move it forward or shorten "
            f"the prompt"
        )
    return kept


def find_words(prompt: str, word: str, occurrence: int | None = None, what: str = "word") -> list[Span]:
    """Character spans of a word in a prompt, whole words, upper and lower case alike; see :func:`word_tokens`.

    ``what`` names the word in errors.
    """
    if not isinstance(word, str) or not word.strip():
        raise UsageError(explain(what, word, "one or several words of the prompt"))
    pieces = [re.escape(piece) for piece in word.split()]
    pattern = r"(?<!\w)" * word.strip()[0].isalnum() + r"\s+".join(pieces) + r"(?!\w)" * word.strip()[-1].isalnum()
    found = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
    if not found:
        known = list(dict.fromkeys(prompt.split()))
        raise UsageError(explain(what, word, known, None if prompt.strip() else "the prompt is empty"))
    if occurrence is None:
        return found
    if isinstance(occurrence, bool) or not isinstance(occurrence, int) or not 0 <= occurrence < len(found):
        raise UsageError(explain(f"occurrence of {shown(word)}", occurrence, f"0 to {len(found) - 1}"))
    return [found[occurrence]]


def token_offsets(tokenizer: Any, text: str) -> list[Span]:
    """(start, end) characters of every token of a text, special tokens (empty spans) included.

    Raises:
        UsageError: a tokenizer that tells no offsets (written in Python), with what to do.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; load its fast form "
            f"(transformers.AutoTokenizer.from_pretrained(folder)) into the pipeline"
        )
    return [tuple(span) for span in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def _check_known(tokenizer: Any, text: str, positions: list[int], word: str) -> None:
    """Refuse a word of which the tokenizer knows nothing: all such words are one token to the model."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    eos = getattr(tokenizer, "eos_token_id", None)
    ids = tokenizer(text)["input_ids"]
    if unknown is not None and unknown != eos and all(ids[position] == unknown for position in positions):
        raise UsageError(
            f"word {word}: {type(tokenizer).__name__} does not know it, so the model reads no such word; use "
            f"a word it knows"
        )


def _own_limit(tokenizer: Any) -> int | None:
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 1_000_000 else None


def _overlap(offset: Span, place: Span, text: str) -> bool:
    """Whether a token shares a character other than a space with a place."""
    first, last = max(offset[0], place[0]), min(offset[1], place[1])
    return first < last and bool(text[first:last].strip())


@dataclass(frozen=True)
class TextPart:
    """A run of the denoiser's text tokens that one tokenizer makes.

    Args:
        tokenizer: it.
        start: where the run begins among the denoiser's text tokens.
        length: tokens of the run, padding included; None = as many as come.
        template: text around the prompt, ``{}`` in its place.
        dropped: tokens cut off at the start of the encoder's answer.
    """

    tokenizer: Any
    start: int = 0
    length: int | None = None
    template: str = "{}"
    dropped: int = 0

    def tokens(self, prompt: str, places: Sequence[Span]) -> tuple[int, ...]:
        """Positions of some characters of a prompt among the denoiser's text tokens; see :func:`span_tokens`."""
        found = span_tokens(
            self.tokenizer, prompt, places, length=self.length, template=self.template, dropped=self.dropped
        )
        return tuple(self.start + position for position in found)

    def end(self, prompt: str) -> tuple[int, ...]:
        """Position of the token that ends the prompt; empty for tokenizers without one."""
        mark = getattr(self.tokenizer, "eos_token_id", None)
        ids = self.tokenizer(self.template.replace("{}", prompt))["input_ids"][self.dropped :]
        if mark is None or mark not in ids or (self.length is not None and ids.index(mark) >= self.length):
            return ()
        return (self.start + ids.index(mark),)


def text_parts(pipe: Any, slots: int | None = None, name: str | None = None) -> tuple[TextPart, ...]:
    """How a pipeline's prompts become the denoiser's text tokens.

    Args:
        pipe: a Diffusers pipeline, or anything that has its tokenizers as attributes.
        slots: text tokens of this run (``max_sequence_length``), where they can be chosen.
        name: class name of the pipeline; default: that of ``pipe``.

    Raises:
        UsageError: a pipeline whose way of reading prompts genkit does not know.
    """
    name = name or type(pipe).__name__
    readings = readings_of(name)
    if readings is None:
        raise UsageError(
            f"genkit does not know how {name} reads prompts, so words cannot be found among its text tokens; known: "
            f"pipelines whose names begin with {', '.join(KNOWN)}"
        )
    return tuple(_part(pipe, reading, slots) for reading in readings)


def text_tokens(
    pipe: Any, prompt: str, word: str, *, occurrence: int | None = None, slots: int | None = None
) -> tuple[int, ...]:
    """Positions of a word among the denoiser's text tokens, for all text encoders of a pipeline (SD3 reads CLIP's and
    T5's tokens one after the other); arguments as in :func:`word_tokens` and :func:`text_parts`.

    A word that only one of several encoders reads far enough, or knows, is found there.
    """
    return tokens_at(text_parts(pipe, slots), prompt, find_words(prompt, word, occurrence))


def tokens_at(parts: Sequence[TextPart], prompt: str, places: Sequence[Span]) -> tuple[int, ...]:
    """Positions of some characters of a prompt among the denoiser's text tokens; those of every part that has them.

    Raises:
        UsageError: no part has them; the last part's reason.
    """
    found: list[int] = []
    refusal: UsageError | None = None
    for part in parts:
        try:
            found += part.tokens(prompt, places)
        except UsageError as error:
            refusal = error
    if not found and refusal is not None:
        raise refusal
    return tuple(found)


def _part(pipe: Any, reading: Reading, slots: int | None) -> TextPart:
    tokenizer = getattr(pipe, reading.tokenizer)
    start = 0 if reading.after is None else getattr(pipe, reading.after).model_max_length
    if reading.length is None:
        length = _own_limit(tokenizer)
    else:
        usual = reading.length if reading.attribute is None else getattr(pipe, reading.attribute, reading.length)
        length = slots or usual
    return TextPart(tokenizer, start, length, reading.template, reading.dropped)
