r"""Weights written into a prompt: ``(word:1.3)``, ``(two words:0.5)``, ``(word:0@0.5-1)`` for a part of a clip."""

from __future__ import annotations

import re
from dataclasses import dataclass

from genkit.errors import UsageError, shown

MOST = 10.0
MOST_WORDS = 100
_TAIL = 80  # characters before a closing bracket in which a weight is looked for
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_WEIGHT = re.compile(rf":\s*({_NUMBER})\s*(?:@\s*({_NUMBER})\s*-\s*({_NUMBER})\s*)?$")
_MEANT = re.compile(r":(\S+)$|:\s*([-+]?[\d.][^\s]*)$|:()$")
_LOOSE = re.compile(rf":\s*{_NUMBER}(?:\s*@\s*{_NUMBER}\s*-\s*{_NUMBER})?(?=[\s,.;)]|$)")
_HOW = "write (word:1.3) or (word:0@0.5-1), or \\( and \\) for brackets that are text"


@dataclass(frozen=True)
class Emphasis:
    """Some characters of a prompt and what they weigh.

    Args:
        start, stop: half-open range of characters of the clean prompt.
        weight: 1 = as usual, 0 = as if they were not there.
        frames: half-open share of a clip's length it holds for.
    """

    start: int
    stop: int
    weight: float
    frames: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Weighted:
    """A prompt without its weights, and the weights.

    Args:
        text: what the model reads. words: in the order of the text; they may lie inside each other.
        loose: what looks like a weight and is text, since one of its brackets is missing.
    """

    text: str
    words: tuple[Emphasis, ...] = ()
    loose: tuple[str, ...] = ()

    def cut(self, text: str) -> Weighted:
        """Of a beginning of the text; weights behind it are dropped."""
        return Weighted(text, tuple(word for word in self.words if text[word.start : word.stop].strip()), self.loose)

    def named(self, emphasis: Emphasis) -> str:
        """The characters of an emphasis."""
        return self.text[emphasis.start : emphasis.stop]


def parse_weights(prompt: str) -> Weighted:
    r"""Take the weights out of a prompt.

    ``(word:1.3)`` weighs the words inside the brackets, ``(word:0@0.5-1)`` only in the second half of a clip. Brackets
    inside brackets multiply. Brackets without a weight are text, as are ``\(`` and ``\)``; so is a weight with one
    bracket only, which :attr:`Weighted.loose` tells.

    Raises:
        UsageError: a weight that is no number from 0 to 10, a share that is none, brackets with a weight and no word.

    Example:
        >>> found = parse_weights(r"a (large (red:1.5):0.5) circle (on white) \(x:2\)")
        >>> found.text
        'a large red circle (on white) (x:2)'
        >>> [(found.named(word), word.weight) for word in found.words]
        [('large red', 0.5), ('red', 1.5)]
    """
    out: list[str] = []
    opened: list[tuple[int, int]] = []  # place of a bracket in the output, number of words found before it
    words: list[Emphasis] = []
    loose: list[str] = []
    closed = 0  # place in the output behind the last closing bracket
    place = 0
    while place < len(prompt):
        character = prompt[place]
        if character == "\\" and prompt[place + 1 : place + 2] in ("(", ")"):
            out.append(prompt[place + 1])
            place += 2
            continue
        place += 1
        if character == "(":
            opened.append((len(out), len(words)))
        if character == ")" and opened:
            begin, before = opened.pop()
            first = max(begin + 1, len(out) - _TAIL)
            found = _weight("".join(out[first:]), first == begin + 1)
            if found is not None:
                end, weight, frames = found
                del out[first + end :], out[begin]
                inner = [_moved(word, -1) for word in words[before:]]
                words[before:] = [Emphasis(begin, len(out), weight, frames), *inner]
                closed = len(out)
                if len(words) > MOST_WORDS:
                    raise UsageError(f"prompt: more than {MOST_WORDS} weights; weigh whole phrases, or leave some out")
                continue
        elif character == ")" and _WEIGHT.search("".join(out[max(closed, len(out) - _TAIL) :])):
            loose.append("".join(out[max(closed, len(out) - _TAIL) :]).rpartition(" ")[2] + ")")
        out.append(character)
        closed = len(out) if character == ")" else closed
    half_open = [match for begin, _ in opened if (match := _unclosed(out, begin))]
    loose += {stop: text for stop, text in half_open}.values()  # of brackets inside each other the innermost
    return Weighted("".join(out), tuple(words), tuple(loose))


def _unclosed(out: list[str], begin: int) -> tuple[int, str] | None:
    """Where a weight ends behind a bracket that nothing closes, and the text from the bracket to it; None without."""
    text = "".join(out[begin : begin + _TAIL])
    match = _LOOSE.search(text)
    return None if match is None else (begin + match.end(), text[: match.end()])


def _weight(inside: str, whole: bool) -> tuple[int, float, tuple[float, float]] | None:
    """Where the words end, their weight and frames; None for brackets that are text.

    ``inside``: what the brackets hold, or its end when it is not ``whole``.
    """
    match = _WEIGHT.search(inside)
    if match is None:
        meant = _MEANT.search(inside)
        if meant is not None:
            given = next(group for group in meant.groups() if group is not None)
            raise UsageError(
                f"prompt: the weight {shown(given)} in {shown(f'({inside})')} is no number from 0 to 10; {_HOW}"
            )
        return None
    if whole and not inside[: match.start()].strip():
        raise UsageError(f"prompt: {shown(f'({inside})')} weighs no word; {_HOW}")
    weight = float(match[1])
    if weight > MOST:
        raise UsageError(f"prompt: the weight {match[1]} in {shown(f'({inside})')} is above {MOST:g}; {_HOW}")
    frames = (0.0, 1.0) if match[2] is None else (float(match[2]), float(match[3]))
    check_frames(frames, f"prompt: the part {match[2]}-{match[3]} of the clip")
    return match.start(), weight, frames


def check_frames(frames: tuple[float, float], what: str) -> None:
    """UsageError unless it is a share of a clip's length."""
    if not 0 <= frames[0] < frames[1] <= 1:
        raise UsageError(f"{what} must be two shares of its length from 0 to 1, the first below the second")


def _moved(word: Emphasis, by: int) -> Emphasis:
    return Emphasis(word.start + by, word.stop + by, word.weight, word.frames)
