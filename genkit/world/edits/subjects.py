"""The same subject in several pictures: who is described once, and whether the pictures show that subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from genkit.errors import UsageError, explain
from genkit.world.caption import article
from genkit.world.picture_judge import SeenPart, judge_picture
from genkit.world.picture_scene import TEXTURES
from genkit.world.reading import UNCLEAR
from genkit.world.scene import pick
from genkit.world.vocabulary import COLOURS, FIRST_BACKGROUNDS, SHAPES

ATTRIBUTES: tuple[str, ...] = ("colour", "shape", "texture", "size")
#: Those that the prompts of the pictures name.
NAMED: tuple[str, ...] = ("colour", "shape")


@dataclass(frozen=True)
class SubjectSet:
    """Prompts of pictures of the same subjects on different grounds, and who the subjects are.

    Args:
        prompts: one per picture; they name the subjects by colour and shape alone.
        subjects: those words, such as ``("red circle",)``.
        looks: who the subjects are, such as ``("striped red circle",)``; no prompt says it.
        said: the prompts with the looks in place of the names: what has no need of consistency.
        asked: of every subject its look, attribute -> word.
        backgrounds: of the pictures.
    """

    prompts: tuple[str, ...]
    subjects: tuple[str, ...]
    looks: tuple[str, ...]
    said: tuple[str, ...]
    asked: tuple[dict[str, str], ...]
    backgrounds: tuple[str, ...]


def draw_subject_set(rng: np.random.Generator, subjects: int = 1, pictures: int = 4) -> SubjectSet:
    """Draw subjects of a texture that only their description tells, on as many grounds as there are pictures.

    Args:
        rng: source of randomness.
        subjects: 1 or 2; the shapes, colours and textures of two differ.
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
    textures = rng.permutation([name for name in TEXTURES if name != "plain"])[:subjects].tolist()
    told = tuple(
        {"colour": colour, "shape": shape, "texture": texture}
        for colour, shape, texture in zip(colours, shapes, textures, strict=True)
    )
    named = tuple(f"{each['colour']} {each['shape']}" for each in told)
    looks = tuple(f"{each['texture']} {name}" for each, name in zip(told, named, strict=True))
    between = f" {pick(rng, ('left of', 'right of'))} " if subjects == 2 else ""
    prompts, said = (
        tuple(f"{between.join(map(_with_article, names))} on {_with_article(ground)} background" for ground in chosen)
        for names in (named, looks)
    )
    return SubjectSet(prompts, named, looks, said, told, chosen)


def _with_article(words: str) -> str:
    return f"{article(words.split()[0])} {words}"


def judge_subjects(case: SubjectSet, outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """How well pictures show the same subjects.

    Args:
        case: the prompts.
        outputs: uint8 (H, W, 3), one per prompt.

    Returns:
        Shares in 0..1. ``look``: subjects of the pictures that have all of their look. ``colour``, ``shape``,
        ``texture``, ``size``: pairs of pictures whose subjects are alike in it; ``same``: pairs alike in all four.
        ``asked``: pictures with background, number of objects and named attributes as prompted.
    """
    if len(outputs) != len(case.prompts):
        raise UsageError(f"{len(case.prompts)} prompts need as many pictures, got {len(outputs)}")
    verdicts = [judge_picture(output) for output in outputs]
    found = [[_find(asked, verdict.actors) for asked in case.asked] for verdict in verdicts]
    pairs = [(one[i], other[i]) for one, other in combinations(found, 2) for i in range(len(case.asked))]
    alike = {name: float(np.mean([_alike(name, *pair) for pair in pairs])) for name in ATTRIBUTES}
    same = float(np.mean([all(_alike(name, *pair) for name in ATTRIBUTES) for pair in pairs]))
    looks = [_has(part, asked) for parts in found for part, asked in zip(parts, case.asked, strict=True)]
    as_asked = [
        verdict.background == ground
        and len(verdict.actors) == len(case.asked)
        and all(_has(part, asked, NAMED) for part, asked in zip(parts, case.asked, strict=True))
        for verdict, ground, parts in zip(verdicts, case.backgrounds, found, strict=True)
    ]
    return {"look": float(np.mean(looks)), **alike, "same": same, "asked": float(np.mean(as_asked))}


def _find(asked: dict[str, str], parts: Sequence[SeenPart]) -> SeenPart | None:
    """The seen object with most of what its picture's prompt names; the largest of several."""
    return max(parts, key=lambda part: sum(getattr(part, name) == asked[name] for name in NAMED), default=None)


def _has(part: SeenPart | None, asked: dict[str, str], names: tuple[str, ...] = ATTRIBUTES) -> bool:
    """Whether a seen object has what is asked, as far as these attributes go."""
    return part is not None and all(getattr(part, name) == word for name, word in asked.items() if name in names)


def _alike(name: str, one: SeenPart | None, other: SeenPart | None) -> bool:
    """Whether two seen objects have the same word; what is unclear is like nothing."""
    return one is not None and other is not None and getattr(one, name) == getattr(other, name) != UNCLEAR
