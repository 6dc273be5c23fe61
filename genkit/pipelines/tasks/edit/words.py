"""The words of a prompt that limit a change to where they act."""

from __future__ import annotations

from genkit.control.alignment import align
from genkit.control.spans import find_words
from genkit.pipelines.tasks.edit.settings import AUTO, NONE, EditSettings


def check_words(settings: EditSettings) -> None:
    """UsageError for words that the prompt does not have."""
    for word in settings.words:
        if word not in (AUTO, NONE):
            find_words(settings.prompt or "", word)


def chosen(settings: EditSettings) -> tuple[str, ...]:
    """The words as the methods take them: those of the settings, those that differ, or none."""
    if settings.words in ((), (NONE,)):
        return ()
    if settings.words == (AUTO,):
        return differing(settings.source_prompt or "", settings.prompt or "")
    return settings.words


def replaced(settings: EditSettings) -> tuple[str, ...]:
    """The words of the source prompt that the prompt does not have."""
    return differing(settings.prompt or "", settings.source_prompt or "")


def differing(source: str, target: str) -> tuple[str, ...]:
    """The words of the target prompt without a partner in the source prompt, in order.

    Example:
        >>> differing("a red circle on a blue background", "a striped green circle on a blue background")
        ('striped', 'green')
    """
    here, there = target.lower().replace(",", " ").split(), source.lower().replace(",", " ").split()
    numbers = {word: index for index, word in enumerate(dict.fromkeys(here + there))}
    found = align([numbers[word] for word in there], [numbers[word] for word in here])
    return tuple(word for word, partner in zip(here, found.source, strict=True) if partner is None)
