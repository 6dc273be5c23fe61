"""How many tokens of a prompt a model reads, and what happens with the rest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UsageError, counted, said
from genkit.pipelines.words import Words
from genkit.reading import read_text
from genkit.reading.files import place

if TYPE_CHECKING:
    from genkit.control import Reweight
    from genkit.pipelines.model import Model

MOST_PROMPTS = 10_000
UNBOUNDED = 1_000_000
#: Entries of a vocabulary that is a list of words, and how many words it then has at least; those of large models have
#: some 30,000 pieces and more, of which any word can be made.
SHORT_VOCABULARY, FEWEST_WORDS = 4000, 20


@dataclass(frozen=True)
class Prompts:
    """Texts as a model will read them.

    Args:
        prompt, negative: the texts; the end may be cut.
        told: what the user should know, one line each.
        words: the weights that were written into the texts. rules: what they come to for the model.
    """

    prompt: str | None
    negative: str | None = None
    told: tuple[str, ...] = ()
    words: Words = Words()
    rules: tuple[Reweight, ...] = ()


def tokenizers_of(model: Model) -> dict[str, Any]:
    """The tokenizers of a model's folder by their part's name; no weights are read.

    Raises:
        ArtifactError: a part's files make no tokenizer.
    """
    import transformers

    found = {}
    for part, (library, name) in model.parts.items():
        kind = getattr(transformers, name, None) if library == "transformers" else None
        if kind is None or not part.startswith("tokenizer") or not hasattr(kind, "from_pretrained"):
            continue
        try:
            found[part] = kind.from_pretrained(str(model.folder / part), local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
            raise ArtifactError(f"{model.folder / part} cannot be loaded as {name}: {said(error)}") from error
    return found


def read_prompts(
    tokenizers: Mapping[str, Any],
    settings: Any,
    most: int | None = None,
    name: str = "prompt",
    taught: Collection[str] = (),
    expected: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Prompts:
    """The prompts as the model will read them, and warnings about what was cut or is not known to it.

    Diffusers pipelines drop the end of a long prompt, some without a word. Here a prompt that no text encoder of the
    pipeline reads whole is refused, or cut with a warning when ``settings.truncate_prompt`` is on.

    Args:
        tokenizers: the model's, by the name of their part; other parts are passed over.
        settings: with prompt, negative prompt, ``max_sequence_length`` and ``truncate_prompt``.
        most: fewer tokens than the text encoder reads, when the model was trained on short prompts only.
        name: of the prompt, for messages.
        taught: words that a LoRA or its captions teach, in small letters: they are no slips of the pen.
        expected: what every prompt in training named, see :attr:`genkit.models.sidecar.Sidecar.prompts_name`.

    Raises:
        UsageError: a prompt is too long; the message tells its length and the limit.
    """
    readers = _readers(tokenizers, settings.max_sequence_length, most)
    told: list[str] = []
    texts = []
    words = Words.of(settings)
    told += words.told(settings, name)
    for what, text in words.texts(name):
        if text and readers:
            text = _fit(what, text, readers, settings.truncate_prompt, told)
            told += _unknown_words(what, text, readers, taught)
        texts.append(text)
    told += _unnamed(name, texts[0], expected)
    told += _timed(texts[0]) if name == "prompt" and getattr(settings, "num_frames", None) else []
    return Prompts(texts[0], texts[1], tuple(told), words.cut(*texts))


def _unknown_words(name: str, text: str, readers: list[tuple[Any, int]], taught: Collection[str]) -> list[str]:
    """A warning that lists the words which no tokenizer knows, with known ones that are written alike; empty when all
    are known or taught."""
    words = [word for word in _unknown(text, [reader for reader, _ in readers]) if word.lower() not in taught]
    if not words:
        return []
    known = _words(readers[0][0])
    shown = ", ".join(_with_near(word, known) for word in words[:8]) + (", ..." if len(words) > 8 else "")
    return [f"the model does not know these words of the {name}: {shown}"]


def _timed(text: str | None) -> list[str]:
    """A warning of frames behind a single prompt, where they are words like others."""
    found = re.search(r"\S\s*@\s*(\d{1,6})$", text or "")
    if found is None:
        return []
    return [
        f"@{found[1]} at the end of the prompt is read as words, for frames of a shot go with several prompts; for the "
        f"length of the clip give --num-frames {found[1]}"
    ]


def _unnamed(name: str, text: str | None, expected: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning for everything that the model never had to guess in training and the prompt leaves open."""
    if not text or not text.strip():
        return []
    said = f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "
    return [
        f"the {name} names no {what}, and the model was trained on prompts that all do; add one, such as "
        f"{words[-1]!r}"
        for what, words in expected.items() if not any(f" {each} " in said for each in words)
    ]  # fmt: skip


def new_words(tokenizers: Sequence[Any], texts: Iterable[str]) -> list[str]:
    """The words of texts, in small letters, that none of a model's tokenizers knows; none where one does not tell."""
    return sorted({word.lower() for text in texts for word in _unknown(text, tokenizers)}) if tokenizers else []


def _unknown(text: str, tokenizers: Sequence[Any]) -> list[str]:
    unknown = []
    for tokenizer in tokenizers:
        found = _unknown_to(tokenizer, text)
        if found is None:
            return []
        unknown.append(found)
    return sorted(set(unknown[0]).intersection(*unknown[1:]))


def _unknown_to(tokenizer: Any, text: str) -> set[str] | None:
    """The words that a tokenizer replaces by its unknown token or, where its vocabulary is a short list of words, takes
    to pieces; None when it does not tell."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    mark = getattr(tokenizer, "unk_token_id", None)
    short = len(tokenizer) <= SHORT_VOCABULARY and len(_words(tokenizer)) >= FEWEST_WORDS
    if mark is None and not short:
        return None
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans: dict[Any, list[tuple[int, int]]] = {}
    unknown = set()
    for token, word, (start, stop) in zip(read["input_ids"], read.word_ids(), read["offset_mapping"], strict=True):
        if stop > start:
            spans.setdefault(word, []).append((start, stop))
            unknown |= {text[start:stop].strip()} if token == mark else set()
    pieces = (text[parts[0][0] : parts[-1][1]].strip() for parts in spans.values() if len(parts) > 1)
    return unknown | ({word for word in pieces if word.isalpha()} if short else set())


def _words(tokenizer: Any) -> list[str]:
    """Whole words of a tokenizer's vocabulary, without the marks that some put at a word's beginning or end."""
    entries = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    ends = {word for word in entries if word.endswith("</w>")}
    words = {word.removesuffix("</w>").lstrip("\u2581\u0120") for word in ends or entries}
    return sorted(word for word in words if len(word) > 1 and word.isalpha())


def _with_near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.6)
    return f"{word} (it knows {', '.join(near)})" if near else word


def _readers(parts: Mapping[str, Any], sequence_length: int | None, most: int | None) -> list[tuple[Any, int]]:
    """The tokenizers, each with the number of tokens it hands on."""
    readers = []
    for name, part in sorted(parts.items()):
        if not name.startswith("tokenizer") or part is None or not callable(part):
            continue
        own = getattr(part, "model_max_length", UNBOUNDED)
        is_clip = "CLIP" in type(part).__name__
        limits = [own if own < UNBOUNDED else None, None if is_clip else sequence_length, most]
        limit = min((value for value in limits if value is not None), default=None)
        if limit is not None:
            readers.append((part, limit))
    return readers


def _fit(name: str, text: str, readers: list[tuple[Any, int]], truncate: bool, cut: list[str]) -> str:
    lengths = [(len(tokenizer(text)["input_ids"]), limit, tokenizer) for tokenizer, limit in readers]
    if any(length <= limit for length, limit, _ in lengths):
        return text
    length, limit, tokenizer = max(lengths, key=lambda entry: entry[1])
    told = f"the {name} has {counted(length, 'token')}, the model reads {limit}"
    if not truncate:
        raise UsageError(f"{told}; shorten it, or add --truncate-prompt to drop the end")
    cut.append(f"{told}; the end was dropped (--truncate-prompt)")
    return _head(tokenizer, text, limit)


def _head(tokenizer: Any, text: str, limit: int) -> str:
    """The beginning of a text that has at most ``limit`` tokens, the special ones included.

    A tokenizer that cannot tell where its tokens lie gets the whole text; the pipeline then cuts it at the same limit.
    """
    if not getattr(tokenizer, "is_fast", False):
        return text
    room = limit - tokenizer.num_special_tokens_to_add()
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: spans[room - 1][1]] if room > 0 else ""


def read_prompt_file(path: str | Path) -> list[str]:
    """Prompts from a text file, one per line; blank lines and a byte order mark are skipped.

    Raises:
        ArtifactError: missing file, no UTF-8, or larger than a mebibyte.
        UsageError: no prompt in it, or more than :data:`MOST_PROMPTS`.
    """
    lines = read_text(path, what="prompt file").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"prompt file {place(path)} holds no prompt; write one per line")
    if len(prompts) > MOST_PROMPTS:
        raise UsageError(
            f"prompt file {place(path)} holds {counted(len(prompts), 'prompt')}, allowed: {MOST_PROMPTS}; split it"
        )
    return prompts
