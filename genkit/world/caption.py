"""Captions of scenes: a small grammar with paraphrases, and the list of all its words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genkit.world.scene import Actor, Scene
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, SHAPE_WORDS, SIZE_WORDS

_MOVE_VERBS = ("moves", "goes", "slides")
_DIRECTION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up_left": ("up and left", "diagonally up and to the left"),
    "up_right": ("up and right", "diagonally up and to the right"),
    "down_left": ("down and left", "diagonally down and to the left"),
    "down_right": ("down and right", "diagonally down and to the right"),
}
_MOTION_PHRASES: dict[str, tuple[str, ...]] = {
    "still": ("stays still", "does not move", "is still"),
    "bounce": ("bounces", "bounces up and down", "jumps up and down"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "spin": ("spins", "rotates"),
}
#: How often something bounces, in words.
COUNT_PHRASES: dict[int, str] = {1: "once", 2: "twice", 3: "three times"}


def motion_phrase(motion: str, rng: np.random.Generator | None = None) -> str:
    """Words for a motion, the plainest ones without ``rng``."""
    pick = (lambda options: options[0]) if rng is None else (lambda options: str(rng.choice(options)))
    if motion in _DIRECTION_PHRASES:
        return f"{pick(_MOVE_VERBS)} {pick(_DIRECTION_PHRASES[motion])}"
    return pick(_MOTION_PHRASES[motion])


def actor_phrase(actor: Actor, rng: np.random.Generator | None = None, size: bool = True, texture: str = "") -> str:
    """Words for an actor without its motion, for instance "a big red ball"; ``texture`` is said before the colour."""
    pick = (lambda options: options[0]) if rng is None else (lambda options: str(rng.choice(options)))
    words = [*filter(None, [texture]), actor.colour, pick(SHAPE_WORDS[actor.shape])]
    if size and SIZE_WORDS[actor.size] and actor.motion not in ("grow", "shrink"):
        words.insert(0, pick(SIZE_WORDS[actor.size]))
    return " ".join([article(words[0]), *words])


def article(word: str) -> str:
    """The indefinite article before a word of the grammar."""
    return "an" if word == "orange" else "a"


def caption(
    scene: Scene,
    rng: np.random.Generator | None = None,
    picture: bool = False,
    counts: Sequence[int | None] = (),
    background: bool = True,
) -> str:
    """A caption of a scene.

    Args:
        scene: what is shown.
        rng: draws among paraphrases; without it the canonical caption is given, which names everything.
        picture: leave the motion out, for single frames.
        counts: how often every actor bounces, to be said; None for an actor whose bounces are not counted.
        background: say the background.

    Returns:
        Lower-case text of at most 36 words.
    """
    times = [*counts, *[None] * (len(scene.actors) - len(counts))]
    if rng is None:
        parts = [_say(actor, None, picture, True, count) for actor, count in zip(scene.actors, times, strict=True)]
    else:
        parts = [
            _say(actor, rng, picture, rng.random() < 0.8, count)
            for actor, count in zip(scene.actors, times, strict=True)
        ]
    subject = " and ".join(parts)
    if not background:
        return subject
    ground = f"{article(scene.background)} {scene.background} background"
    if rng is None:
        return f"{subject} on {ground}"
    template = rng.integers(9)
    if template == 8:  # people leave it out, and a model that never saw such a caption draws noise for it
        return subject
    if template < 4:
        return f"{subject} on {ground}"
    if template == 4:
        return f"on {ground} {subject}"
    if template == 5:
        return f"{subject}, {scene.background} background"
    if template == 6:
        return f"{'an image' if picture else 'a video'} of {subject} on {scene.background}"
    return f"{subject} on {scene.background}"


def _say(actor: Actor, rng: np.random.Generator | None, picture: bool, size: bool, count: int | None = None) -> str:
    phrase = actor_phrase(actor, rng, size)
    if picture:
        return phrase
    times = [COUNT_PHRASES[count]] if actor.motion == "bounce" and count in COUNT_PHRASES else []
    return " ".join([phrase, motion_phrase(actor.motion, rng), *times])


def words() -> list[str]:
    """Every word the grammar can produce, sorted; the vocabulary of the shipped word tokenizers."""
    found = {"a", "an", "and", "on", "of", "background", "video", "image", *COLOURS, *BACKGROUNDS}
    phrases = [*_MOVE_VERBS]
    for table in (_DIRECTION_PHRASES, _MOTION_PHRASES, SHAPE_WORDS, SIZE_WORDS):
        for options in table.values():
            phrases.extend(options)
    for phrase in phrases:
        found.update(phrase.split())
    return sorted(found)


def sound_words() -> list[str]:
    """:func:`words` and those that count bounces; the vocabulary of models with sound."""
    return sorted({*words(), *" ".join(COUNT_PHRASES.values()).split()})
