"""The same subject in several pictures: prompts that leave much of it open, and whether the pictures agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import article
from genkit.world.picture_judge import SeenPart, judge_picture
from genkit.world.reading import UNCLEAR
from genkit.world.scene import pick
from genkit.world.vocabulary import COLOURS, FIRST_BACKGROUNDS, SHAPES

ATTRIBUTES: tuple[str, ...] = ("colour", "shape", "texture", "size")


@dataclass(frozen=True)
class SubjectSet:
    """Prompts of pictures of the same subjects on different grounds.

    Args:
        prompts: one per picture.
        subjects: words of every prompt that name the subjects, such as ``("circle",)``; what they leave open, colour,
            size or texture, must come out alike in all pictures.
        asked: of every subject what the words say, attribute -> word.
        backgrounds: of the pictures.
    """

    prompts: tuple[str, ...]
    subjects: tuple[str, ...]
    asked: tuple[dict[str, str], ...]
    backgrounds: tuple[str, ...]


def draw_subject_set(rng: np.random.Generator, subjects: int = 1, pictures: int = 4) -> SubjectSet:
    """Draw subjects, named by colour and shape alone or by shape alone, on as many grounds as there are pictures.

    Args:
        rng: source of randomness.
        subjects: 1 or 2; the shapes of two differ.
        pictures: prompts, 2 to 5.
    """
    if subjects not in (1, 2):
        raise UsageError(explain("subjects", subjects, (1, 2)))
    grounds = [name for name in FIRST_BACKGROUNDS if name != "white"]
    if not 2 <= pictures <= len(grounds):
        raise UsageError(explain("pictures", pictures, f"2 to {len(grounds)}"))
    chosen = tuple(rng.permutation(grounds)[:pictures].tolist())
    shapes = rng.permutation(list(SHAPES))[:subjects].tolist()
    colours = rng.permutation([name for name in COLOURS if name not in grounds])[:subjects].tolist()
    open_colour = subjects == 1 and rng.random() < 0.5
    named = [shape if open_colour else f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    told = [
        {"shape": shape} | ({} if open_colour else {"colour": colour})
        for colour, shape in zip(colours, shapes, strict=True)
    ]
    phrases = [f"{article(name.split()[0])} {name}" for name in named]
    between = pick(rng, ("left of", "right of")) if subjects == 2 else ""
    subject = f" {between} ".join(phrases)
    prompts = tuple(f"{subject} on {article(ground)} {ground} background" for ground in chosen)
    return SubjectSet(prompts, tuple(named), tuple(told), chosen)


def judge_subjects(case: SubjectSet, outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """How well pictures show the same subjects.

    Args:
        case: the prompts.
        outputs: uint8 (H, W, 3), one per prompt.

    Returns:
        Shares in 0..1: ``colour``, ``shape``, ``texture``, ``size``: pairs of pictures whose subjects are alike in it;
        ``same``: pairs alike in all four. ``asked``: pictures with background, number of objects and named attributes
        as prompted.
    """
    if len(outputs) != len(case.prompts):
        raise UsageError(f"{len(case.prompts)} prompts need as many pictures, got {len(outputs)}")
    verdicts = [judge_picture(output) for output in outputs]
    found = [[_find(asked, verdict.actors) for asked in case.asked] for verdict in verdicts]
    pairs = [(one[i], other[i]) for one, other in combinations(found, 2) for i in range(len(case.asked))]
    alike = {name: float(np.mean([_alike(name, *pair) for pair in pairs])) for name in ATTRIBUTES}
    same = float(np.mean([all(_alike(name, *pair) for name in ATTRIBUTES) for pair in pairs]))
    as_asked = [
        verdict.background == ground
        and len(verdict.actors) == len(case.asked)
        and all(part is not None and _has(part, asked) for part, asked in zip(parts, case.asked, strict=True))
        for verdict, ground, parts in zip(verdicts, case.backgrounds, found, strict=True)
    ]
    return {**alike, "same": same, "asked": float(np.mean(as_asked))}


def _find(asked: dict[str, str], parts: Sequence[SeenPart]) -> SeenPart | None:
    """The seen object with most of what is asked; the largest of several."""
    return max(parts, key=lambda part: sum(getattr(part, name) == word for name, word in asked.items()), default=None)


def _has(part: SeenPart, asked: dict[str, str]) -> bool:
    return all(getattr(part, name) == word for name, word in asked.items())


def _alike(name: str, one: SeenPart | None, other: SeenPart | None) -> bool:
    """Whether two seen objects have the same word; what is unclear is like nothing."""
    return one is not None and other is not None and getattr(one, name) == getattr(other, name) != UNCLEAR
