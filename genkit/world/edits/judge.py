"""The judge of edits: whether what was asked for is there, whether everything else is as it was and where it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genkit.errors import UsageError
from genkit.world.edits.case import ADD, BACKGROUND, REMOVE, ClipEdit, Edit, PictureEdit
from genkit.world.judge import SeenActor, judge_clip, score
from genkit.world.picture_judge import PictureVerdict, SeenPart, judge_picture, seen_relation

#: A centre counts as kept within this share of the object's radius.
MOVED = 0.5
_ATTRIBUTES = ("colour", "shape", "texture", "size", "place")
_CAP = 100.0


def judge_edit(edit: Edit, output: np.ndarray) -> dict[str, bool]:
    """Judge an edited picture or clip by the truth of its case.

    Args:
        edit: the case.
        output: uint8, of the shape of ``edit.source``.

    Returns:
        ``reached``: what was to change is as the target prompt says (the attribute of that object; every attribute
        and the side of an added object; the number of objects after one was removed). ``kept``: all else is as in the
        truth: background, number of objects, and of every object colour, shape, texture, size and place, its centre
        within half its radius of the true one (in the mean over a clip). ``right``: both. Then the single attributes,
        and of clips ``roughly right``: the same with the shape by forced choice.
    """
    if output.shape != edit.source.shape or output.dtype != np.uint8:
        raise UsageError(
            f"an edit's output must be uint8 of shape {edit.source.shape}, got {output.dtype} {output.shape}"
        )
    if isinstance(edit, ClipEdit):
        return _judge_clip(edit, output)
    assert isinstance(edit, PictureEdit)
    return _judge_picture(edit, judge_picture(output))


def psnr_of_stay(edit: Edit, output: np.ndarray) -> float:
    """PSNR in dB against the source over the pixels that should stay, 100 at most."""
    return _psnr(edit.source[edit.stay], output[edit.stay])


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return _CAP if error == 0 else min(_CAP, 10 * float(np.log10(255.0**2 / error)))


def _judge_picture(edit: PictureEdit, verdict: PictureVerdict) -> dict[str, bool]:
    actors = edit.after.actors
    added = edit.actor if edit.kind == ADD else None
    seen = _by_place(edit, verdict.actors, added)
    single = [_compare(edit, i, seen) for i in range(len(actors))]
    ground = {"background": verdict.background == edit.after.background}
    count = {"count": len(verdict.actors) == len(actors)}
    if edit.kind == BACKGROUND:
        asked = ground
    elif edit.kind == REMOVE:
        asked = count
    else:
        assert edit.actor is not None
        changed = single[edit.actor]
        asked = changed if edit.kind == ADD else {edit.kind: changed[edit.kind]}
    rest = [value for told in (ground, count) if told is not asked for value in told.values()]
    for i, found in enumerate(single):
        rest += [value for name, value in found.items() if not (i == edit.actor and name in asked)]
    names = {name: all(found[name] for found in single) for name in _ATTRIBUTES}
    return _verdict(all(asked.values()), all(rest)) | ground | count | names


def _verdict(reached: bool, kept: bool) -> dict[str, bool]:
    return {"reached": bool(reached), "kept": bool(kept), "right": bool(reached and kept)}


def _by_place(edit: PictureEdit, parts: Sequence[SeenPart], added: int | None) -> list[SeenPart | None]:
    """Of every actor the seen object at its place, nearest pairs first; the added one gets what is left."""
    free = list(parts)
    found: list[SeenPart | None] = [None] * len(edit.after.actors)
    wanting = [i for i in range(len(found)) if i != added]
    while free and wanting:
        far = {(i, j): _away(edit, i, part) for i in wanting for j, part in enumerate(free)}
        i, j = min(far, key=far.__getitem__)
        found[i] = free.pop(j)
        wanting.remove(i)
    if added is not None and free:
        found[added] = free[0]
    return found


def _away(edit: PictureEdit, actor: int, part: SeenPart) -> float:
    """Distance of a seen object from an actor's true centre, in units of the actor's radius."""
    place = edit.placement
    return float(np.hypot(part.x - place.x[actor], part.y - place.y[actor]) / place.radius[actor])


def _compare(edit: PictureEdit, actor: int, seen: Sequence[SeenPart | None]) -> dict[str, bool]:
    """Attribute -> whether an actor has it; the place of an added one is the side that the caption names."""
    asked, part = edit.after.actors[actor], seen[actor]
    if part is None:
        return dict.fromkeys(_ATTRIBUTES, False)
    result = {name: getattr(part, name) == getattr(asked, name) for name in _ATTRIBUTES[:-1]}
    if edit.kind == ADD and actor == edit.actor:
        (_, relation, second), other = edit.after.relations[0], seen[1 - actor]
        one, two = (other, part) if actor == second else (part, other)
        result["place"] = one is not None and two is not None and seen_relation(one, two) == relation
    else:
        result["place"] = _away(edit, actor, part) <= MOVED
    return result


def _judge_clip(edit: ClipEdit, output: np.ndarray) -> dict[str, bool]:
    verdict = judge_clip(output)
    told = score(edit.after, verdict)
    told["place"] = bool(verdict.actors) and _follows(edit, verdict.actors[0])
    rough = told.pop("nearest shape")
    told.pop("all")
    asked = edit.kind
    kept = all(value for name, value in told.items() if name != asked)
    # Rough outlines: the same with the shape by forced choice, for models whose own outlines are rough.
    forced = told | {"shape": rough}
    roughly = all(forced.values())
    return _verdict(told[asked], kept) | told | {"nearest shape": rough, "roughly right": roughly}


def _follows(edit: ClipEdit, seen: SeenActor) -> bool:
    """Whether an object's centre is near the true one in the mean over the frames."""
    track = edit.placement
    away = np.hypot(seen.x - track.x[0], seen.y - track.y[0]) / track.radius[0]
    return bool(np.nanmean(away) <= MOVED) if np.isfinite(away).any() else False
