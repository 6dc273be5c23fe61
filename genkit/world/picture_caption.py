"""Captions of still pictures: a small grammar with paraphrases, and the list of all its words."""

from __future__ import annotations

import numpy as np

from genkit.world.caption import actor_phrase, article
from genkit.world.picture_scene import Picture
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, SHAPE_WORDS, SIZE_WORDS

TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("", "", "", "plain"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_CELL_WORDS: dict[str, str] = {"left": "left", "right": "right", "middle": "", "top": "top", "bottom": "bottom"}
_VERBS = ("", "", "", "is")
_OPENINGS = ("an image of", "a picture of")


def picture_caption(picture: Picture, rng: np.random.Generator | None = None) -> str:
    """A caption of a picture.

    Args:
        picture: what is shown.
        rng: draws among paraphrases, of which some leave sizes, the background or a place unsaid; without it the
            canonical caption is given, which names everything.

    Returns:
        Lower-case text of at most 48 words.
    """
    pick = (lambda options: options[0]) if rng is None else (lambda options: options[int(rng.integers(len(options)))])
    names = [
        actor_phrase(actor, rng, rng is None or rng.random() < 0.85, pick(TEXTURE_WORDS[actor.texture]))
        for actor in picture.actors
    ]
    subject = _arranged(picture, names, pick)
    if picture.cell is not None and (rng is None or rng.random() < 0.9):
        subject = f"{subject} {cell_phrase(picture.cell)}"
    ground = picture.background
    template = 0 if rng is None else int(rng.integers(10))
    if template < 4:
        return f"{subject} on {article(ground)} {ground} background"
    if template == 4:
        return f"on {article(ground)} {ground} background {subject}"
    if template == 5:
        return f"{subject}, {ground} background"
    if template == 6:
        return f"{pick(_OPENINGS)} {subject} on {ground}"
    return f"{subject} on {ground}" if template == 7 else subject


def cell_phrase(cell: tuple[str, str]) -> str:
    """Words for a third of the canvas, for instance "at the top left" or "in the middle"."""
    across, down = cell
    words = [_CELL_WORDS[down], _CELL_WORDS[across]]
    named = " ".join(word for word in words if word)
    return f"at the {named}" if named else "in the middle"


def _arranged(picture: Picture, names: list[str], pick) -> str:
    """The actors' phrases, joined by the picture's relations; who is named again is called "the red circle"."""
    if not picture.relations:
        return " and ".join(names)
    first, relation, second = picture.relations[0]
    verb = pick(_VERBS)
    between = " ".join(filter(None, [verb, pick(RELATION_WORDS[relation])]))
    text = f"{names[first]} {between} {names[second]}"
    for first, relation, second in picture.relations[1:]:
        known = picture.actors[second]
        again = f"the {known.colour} {pick(SHAPE_WORDS[known.shape])}"
        text = f"{text} and {names[first]} {pick(RELATION_WORDS[relation])} {again}"
    named = {index for first, _, second in picture.relations for index in (first, second)}
    rest = [name for index, name in enumerate(names) if index not in named]
    return " and ".join([text, *rest])


def picture_words() -> list[str]:
    """Every word the grammar can produce, sorted; the vocabulary of the shipped image models' tokenizers."""
    found = {"a", "an", "and", "on", "of", "in", "at", "the", "is", "background", "middle", *COLOURS, *BACKGROUNDS}
    phrases = [*_OPENINGS, *_CELL_WORDS.values()]
    for table in (TEXTURE_WORDS, RELATION_WORDS, SHAPE_WORDS, SIZE_WORDS):
        for options in table.values():
            phrases.extend(options)
    for phrase in phrases:
        found.update(phrase.split())
    return sorted(found)
