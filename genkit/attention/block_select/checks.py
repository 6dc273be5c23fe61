"""What values the settings of ``block_select`` may have, and which change nothing beside the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from genkit.attention.block_select.presets import PLAIN
from genkit.attention.block_select.selectors import SELECTORS
from genkit.attention.method import check_amount, check_choice, check_flag, check_int, check_number
from genkit.errors import UsageError, explain

if TYPE_CHECKING:
    from genkit.attention.block_select.method import BlockSelect

_OWNER = "block_select"
#: Smallest value of whole numbers, and the choices of words.
_LEAST = {
    "block": 8, "least": 1, "refresh": 1, "seed": 0, "samples": 1, "stride": 1, "groups": 1, "fan_out": 2, "rows": 1,
    "clusters": 1, "iterations": 1,
}  # fmt: skip
_MOST = {"block": 4096, "seed": 2**63 - 1, "iterations": 1000}
#: Settings that may be None, which then goes before the preset's value.
NONE = ("across", "top_p", "tail", "guard", "agreement")
_CHOICES = {
    "score": tuple(SELECTORS),
    "ranking": ("own", "shared"),
    "scope": ("row", "head"),
    "sink": ("none", "first_frame"),
    "reduction": ("mass", "max", "row_max"),
    "pairing": ("aligned", "reversed"),
}


def check_values(method: BlockSelect) -> None:
    """Raise UsageError for a value that is not allowed."""
    for name, choices in _CHOICES.items():
        check_choice(_OWNER, name, getattr(method, name), choices)
    for name, low in _LEAST.items():
        check_int(_OWNER, name, getattr(method, name), low, _MOST.get(name))
    check_amount(_OWNER, "keep", method.keep)
    for name, low, high in (
        ("top_p", 0, 1), ("most", 0, 1), ("agreement", -1, 1), ("guard", -1, 1), ("slack", 1, math.inf),
    ):  # fmt: skip
        value = getattr(method, name)
        if value is not None or name not in NONE:
            check_number(_OWNER, name, value, low, high, above=name in ("top_p", "most"))
    check_flag(_OWNER, "untrained", method.untrained)
    if method.untrained and method.weights is not None:
        raise UsageError(f"{_OWNER}: weights and untrained=true exclude each other; give one of them")
    if method.across is not None:
        if not isinstance(method.across, tuple) or len(method.across) != 2:
            raise UsageError(explain(f"{_OWNER}.across", method.across, "two numbers: frames and rows"))
        for side in method.across:
            check_int(_OWNER, "across", side, 1)
    for name, used in (("stride", method.score == "antidiagonal"), ("tail", method.tail is not None)):
        side = getattr(method, name)
        if name == "tail" and used:
            check_int(_OWNER, name, side, 2)
        if used and method.block % side:
            allowed = [part for part in range(2, method.block + 1) if method.block % part == 0]
            raise UsageError(explain(f"{_OWNER}.{name} with block={method.block}", side, allowed))


def without_effect(method: BlockSelect) -> dict[str, str]:
    """The settings that change nothing beside the others, each with what makes it idle."""
    selector = SELECTORS[method.score]
    others = {name for each in SELECTORS.values() for name in each.uses} - set(selector.uses)
    idle = dict.fromkeys(sorted(others), f"score={method.score}")
    if method.top_p is None:
        idle |= dict.fromkeys(("least", "most", "ranking"), "keep: they belong to top_p")
    else:
        idle |= dict.fromkeys(("keep", "scope"), "top_p")
    if method.score == "kmeans":
        idle |= dict.fromkeys(("across", "sink"), "score=kmeans, whose blocks are no boxes of the grid")
    if method.score == "keys":
        without = ("scope", "sink", "guard", "tail", "refresh")
        idle |= dict.fromkeys(without, "score=keys, which chooses single keys and not blocks, in every call")
    return idle


def check_effect(method: BlockSelect, asked: dict[str, Any]) -> None:
    """A setting that was changed and changes nothing is refused."""
    selector = SELECTORS[method.score]
    for name, belongs in without_effect(method).items():
        if name in asked and asked[name] != PLAIN[name]:
            raise UsageError(f"{_OWNER}.{name}: got {asked[name]!r}, which has no effect with {belongs}; leave it out")
    if method.bias is not None and method.score == "kmeans":
        raise UsageError(
            f"{_OWNER}.bias: got {method.bias!r}, and score=kmeans sorts the tokens of every head in its own way, "
            f"where a bias of places is not known; use another score, or leave bias out"
        )
    if method.top_p is not None and not selector.masses:
        raise UsageError(
            f"{_OWNER}.top_p needs scores that are masses, {method.score} gives none: use keep, or one of "
            f"{', '.join(name for name, each in SELECTORS.items() if each.masses)}"
        )
