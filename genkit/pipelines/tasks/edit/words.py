"""The words of a prompt that limit a change to where they act, and what of the settings does nothing."""

from __future__ import annotations

from genkit.control.alignment import align
from genkit.control.spans import find_words
from genkit.control.words import parse_weights
from genkit.errors import counted
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.edit.settings import AUTO, IMG2IMG, INFEDIT, NONE, EditSettings


def check_words(settings: EditSettings) -> None:
    """UsageError for words that the prompt does not have, or that not both have."""
    for word in settings.words:
        if word not in (AUTO, NONE):
            find_words(plain(settings.prompt), word, what="--words")
    for word in settings.source_words:
        if word not in (AUTO, NONE):
            find_words(plain(settings.source_prompt), word, what="--source-words (words of --source-prompt)")
    for word in settings.keep_words:
        for name, prompt in (("--prompt", settings.prompt), ("--source-prompt", settings.source_prompt)):
            find_words(plain(prompt), word, what=f"--keep-words (words that both prompts have) in {name}")


def without_idle(settings: EditSettings) -> tuple[EditSettings, tuple[str, ...]]:
    """Settings without those that the method does not read, and what does nothing in this run, one line each.

    What is left out is not recorded: who repeats the run is not told again.

    Args:
        settings: with the method and its values.
    """
    told = []
    if settings.method == IMG2IMG and settings.source_prompt is not None:
        told.append(f"--source-prompt has no effect: {IMG2IMG} reads none")
        settings = settings.replace(source_prompt=None)
    if settings.preset is not None and settings.keep is None:
        told.append(f"--preset {settings.preset} changes nothing: {settings.method} leaves attention alone")
        settings = settings.replace(preset=None)
    if settings.words == (AUTO,) and not chosen(settings):
        told.append(
            f"--words {AUTO}: the prompt has no word that the source prompt does not have, so the change is limited to "
            "no place; name words of the prompt"
        )
    if settings.source_words == (AUTO,) and not going(settings):
        cause = "" if settings.asked("source_words") else f" (of --preset {settings.preset})"
        told.append(
            f"--source-words {AUTO}{cause}: the source prompt has no word that the prompt does not have, so the change "
            "is limited to no place; say in --source-prompt what goes"
        )
    both = [word for word in settings.keep_words if word in chosen(settings)]
    if both:
        told.append(
            f"--words and --keep-words both name {', '.join(both)}: where they act, the picture's layout is kept"
        )
    if settings.method == INFEDIT:
        told += _idle_steps(settings)
    return settings, tuple(told)


def _idle_steps(settings: EditSettings) -> list[str]:
    """Which shares of the steps of InfEdit come to nothing with the others and this number of steps, one line each."""
    from genkit.editing.infedit.control import early_steps, refined_steps

    steps, settle = settings.steps or 0, settings.settle or 0.0
    settled, mapped = refined_steps(settle, steps), refined_steps(settings.keep_maps or 0.0, steps)
    followed = early_steps(settings.keep or 0.0, steps)
    told = [
        f"{flag(name)} {share:g} has no effect: it is {what} of {counted(steps, 'step')}"
        for name, share, count, what in (
            ("settle", settle, settled, "less than one"),
            ("keep_maps", settings.keep_maps, mapped, "less than one"),
            ("keep", settings.keep, followed, "no more than one"),
        )
        if share and not count and settings.asked(name)
    ]
    if settled and mapped and settled >= mapped:
        told.append(
            f"--keep-maps {settings.keep_maps:g} has no effect: --settle {settle:g} leaves maps free in the "
            f"first {settled} of {counted(steps, 'step')}, where they would be kept"
        )
    first = max(1, 2 * settled)  # see InfEditPipeline: after the first step, and after twice the steps that settle
    if chosen(settings) and first > steps - 2:
        cause = f"--settle {settle:g} is a half of the steps or nearly" if settled else "too few steps"
        told.append(f"--words: no effect in {counted(steps, 'step')}: {cause}")
    return told


def chosen(settings: EditSettings) -> tuple[str, ...]:
    """The words as the methods take them: those of the settings, those that differ, or none."""
    if settings.words in ((), (NONE,)):
        return ()
    if settings.words == (AUTO,):
        return differing(plain(settings.source_prompt), plain(settings.prompt))
    return settings.words


def going(settings: EditSettings) -> tuple[str, ...]:
    """The words of the source prompt for what goes, as the pipeline takes them."""
    if settings.source_words in ((), (NONE,)):
        return ()
    return replaced(settings) if settings.source_words == (AUTO,) else settings.source_words


def replaced(settings: EditSettings) -> tuple[str, ...]:
    """The words of the source prompt that the prompt does not have."""
    return differing(plain(settings.prompt), plain(settings.source_prompt))


def plain(prompt: str | None) -> str:
    """A prompt without the weights that are written into it."""
    return parse_weights(prompt or "").text


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
