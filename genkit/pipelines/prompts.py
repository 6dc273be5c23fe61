"""How many tokens of a prompt a model reads, and what happens with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genkit.errors import UsageError
from genkit.pipelines.settings import GenerateSettings
from genkit.reading import read_text
from genkit.reading.files import place

MOST_PROMPTS = 10_000
UNBOUNDED = 1_000_000


def check_prompt(
    pipeline: Any, settings: GenerateSettings, most: int | None = None
) -> tuple[str, str | None, list[str]]:
    """The prompts as the model will read them, and warnings about what was cut or is not known to it.

    Diffusers pipelines drop the end of a long prompt, some without a word. Here a prompt that no text encoder of the
    pipeline reads whole is refused, or cut with a warning when ``settings.truncate_prompt`` is on.

    Args:
        pipeline: the loaded pipeline.
        settings: prompt, negative prompt and ``max_sequence_length``.
        most: fewer tokens than the text encoder reads, when the model was trained on short prompts only.

    Raises:
        UsageError: a prompt is too long; the message tells its length and the limit.
    """
    readers = _readers(pipeline, settings.max_sequence_length, most)
    told: list[str] = []
    texts = []
    for name, text in (("prompt", settings.prompt), ("negative prompt", settings.negative_prompt)):
        if text and readers:
            text = _fit(name, text, readers, settings.truncate_prompt, told)
            told += _unknown_words(name, text, readers)
        texts.append(text)
    return texts[0], texts[1], told


def _unknown_words(name: str, text: str, readers: list[tuple[Any, int]]) -> list[str]:
    """A warning that lists the words which every tokenizer replaces by its unknown token; empty when all are known."""
    unknown: list[set[str]] = []
    for tokenizer, _ in readers:
        mark = getattr(tokenizer, "unk_token_id", None)
        if mark is None or not getattr(tokenizer, "is_fast", False):
            return []
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        unknown.append({text[start:stop] for token, (start, stop) in pairs if token == mark and stop > start})
    words = sorted(set.intersection(*unknown))
    if not words:
        return []
    shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
    return [f"the model does not know these words of the {name}: {shown}"]


def _readers(pipeline: Any, sequence_length: int | None, most: int | None) -> list[tuple[Any, int]]:
    """The pipeline's tokenizers, each with the number of tokens it hands on."""
    readers = []
    for name, part in sorted(pipeline.components.items()):
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
    told = f"the {name} has {length} tokens, the model reads {limit}"
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
        raise UsageError(f"prompt file {place(path)} holds {len(prompts)} prompts, allowed: {MOST_PROMPTS}; split it")
    return prompts
