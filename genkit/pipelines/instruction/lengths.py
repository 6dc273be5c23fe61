"""Phrases that say how long, fast and large a clip is to be, and from which seed, in English.

A number counts where it can be about nothing but the clip: alone between marks, beside a word for clips, or under its
own name ("seed 7"). What happens in the picture ("waits two seconds, then turns") stays in the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from genkit.pipelines.instruction.masked import Masked

_WORDS = {
    name: number for number, name in enumerate(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split(), 1)
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "half an": 0.5, "half a": 0.5, "an": 1, "a": 1}  # fmt: skip
_WORDS |= {
    f"{tens}-{name}": 10 * number + _WORDS[name]
    for number, tens in enumerate("twenty thirty forty fifty".split(), 2)
    for name in list(_WORDS)[:9]
}
_WORDS |= {f"{name} and a half": number + 0.5 for name, number in list(_WORDS.items())[:10]}
_NUMBER = rf"(?:\d{{1,5}}(?:[.,]\d{{1,2}})?|{'|'.join(sorted(_WORDS, key=len, reverse=True))})"
_CLIP = r"(?:video clip|video|clip|shot|animation|movie|film|loop|sequence|gif|take|time-?lapse)"
_UNITS = {"seconds": r"(?:seconds?|secs?\.?|s|minutes?|mins?\.?)", "frames": r"frames?"}
_RATE = r"(?:fps|frames?\s*(?:per|a|/)\s*s(?:ec(?:ond)?)?)"
_SIZE = r"(?<![\w.,])(?P<width>\d{2,5})\s*(?P<by>[x×*]|by)\s*(?P<height>\d{2,5})"
#: Decades ("neon, 80s") are written as seconds are.
_DECADES = range(20, 100, 10)


def _of(pattern: str) -> re.Pattern:
    return re.compile(pattern, re.IGNORECASE)


def _amount(unit: str) -> str:
    about = r"(?:(?:about|around|approximately|approx\.?|roughly|exactly|circa|ca\.?)\s+)?"
    return rf"(?<![\w.,:-]){about}(?P<number>{_NUMBER})(?P<gap>\s*-?\s*)(?P<unit>{_UNITS[unit]})(?![\w-])"


_LASTS = r"(?:lasts?|lasting|runs? for|running for)\s+(?:for\s+)?"
#: What the words around an amount have to be: "free": marks on both sides; "said": behind a word for clips; "ends":
#: nothing that is left behind it.
_AROUND = (
    (r"(?:(?:for|with|of|at|in)\s+)?(?:(?:a|the)\s+)?(?:total\s+)?(?:duration|length|run ?time|running time)"
     r"\s*(?:of|is|:|=)?\s*", r"", ""),
    (rf"(?:(?<=\s)(?:that|which|it|(?:the|this)\s+{_CLIP})\s+)?(?:(?:should|must|shall|to)\s+)?{_LASTS}", r"", "said"),
    (rf"(?:(?:it|(?:the|this)\s+{_CLIP})\s+(?:should|must|shall|is to|will)\s+be\s+|"
     r"(?:make|keep)\s+(?:it|the\s+\w+)\s+|(?:which|that)\s+is\s+)?",
     r"\s+(?:long|in length|in total|overall|altogether)\b", "free"),
    (r"(?:all\s+)?(?:for|over|in)\s+", r"(?:\s+(?:long|in total|overall))?", "ends"),
    (r"", r"", "free"),
)  # fmt: skip
_NAMED = {
    "frames": _of(r"(?<!\w)(?:num[_ -]?frames|frames|number of frames)\s*[:=]\s*(?P<number>\d{1,6})\b"),
    "seconds": _of(r"(?<!\w)(?:seconds|duration|length)\s*[:=]\s*(?P<number>\d{1,5}(?:\.\d{1,2})?)(?!\.?\w)"),
}
_FPS = (
    _of(r"(?<!\w)(?:(?:at|with|in|using|and)\s+|@\s*)?(?:a\s+)?(?:frame ?rate\s*(?:of|:|=)?\s*)?"
        rf"(?<![\w.,])(?P<number>{_NUMBER})\s*-?\s*{_RATE}(?!\w)"),
    _of(rf"(?<!\w)(?:(?:at|with)\s+)?(?:a\s+)?(?:fps|frame ?rate)\s*(?:of|:|=)\s*(?P<number>{_NUMBER})(?![\w.])"),
)  # fmt: skip
_SEED = _of(
    r"(?<!\w)(?P<how>(?:with|using|use|from|at)\s+)?(?:(?:the|a)\s+)?(?:random\s+)?seed\s*(?P<mark>number|no\.?|of|is|:|=|#)?\s*"
    r"(?P<number>\d{1,18})(?![\w.]*\w)"
)


@dataclass
class Lengths:
    """What the phrases of a text say in numbers.

    Args:
        words: the text; what is understood is cut out of it.
        values: fields of an instruction.
        told: what the user should know.
    """

    words: Masked
    values: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def read(self) -> Lengths:
        """Cut what is understood; a field with two values is not."""
        self._field("fps", self._rates())
        self._field("seed", self._seeds())
        self._field("size", self._sizes())
        for _ in range(2):  # what was cut is a mark that others end at
            for unit in ("frames", "seconds"):
                if unit not in self.values:
                    self._field(unit, self._amounts(unit))
            if "size" not in self.values:
                self._field("size", self._sizes())
        if "size" in self.values:
            self.values["width"], self.values["height"] = self.values.pop("size")
        return self

    def _field(self, name: str, found: list[tuple[tuple[int, int], Any, str]]) -> None:
        """Take a value: (place, value, what stays there)."""
        values = list(dict.fromkeys(value for _, value, _ in found))
        if len(values) > 1:
            line = f"--instruction says more than one {_CALLED[name]} ({', '.join(map(_plain, values))}); none is taken"
            if line not in self.told:
                self.told.append(line)
            return
        if not values:
            return
        self.values[name] = values[0]
        place = {start: (end, left) for (start, end), _, left in found}
        for start in sorted(place, reverse=True):
            end, left = place[start]
            self.words.cut_at(start, end, left)

    def _amounts(self, unit: str) -> list[tuple[tuple[int, int], Any, str]]:
        text, found = self.words.text, {}
        amount = _amount(unit)
        several = len(_of(amount).findall(text)) > 1
        for match in _NAMED[unit].finditer(text):
            if not self.words.free_right(match.end()):
                continue
            found[match.span()] = (match.span(), _value(match, unit), "")
        # "a 3-second clip" -> "a clip"; "a clip of 3 seconds" -> "a clip"
        for match in _of(rf"(?:(?P<article>\ban?)\s+)?{amount}(?:\s+|-)(?:long\s+)?(?P<noun>{_CLIP})\b").finditer(text):
            left = f"{_article(match['article'], match['noun'])} {match['noun']}".lstrip()
            found[match.span()] = (match.span(), _value(match, unit), left)
        for match in _of(rf"\b(?P<noun>{_CLIP})\s+(?:of|with|over)\s+{amount}").finditer(text):
            if self.words.free_right(match.end()) or _links(text, match.end()):
                found[match.span()] = (match.span(), _value(match, unit), match["noun"])
        for before, behind, how in _AROUND:
            for match in _of(rf"(?<![\w-]){before}{amount}{behind}").finditer(text):
                if self._stands(match, how, several) and not _inside(match, found):
                    found[match.span()] = (match.span(), _value(match, unit), "")
        return [each for each in found.values() if each[1] is not None]

    def _stands(self, match: re.Match, how: str, several: bool) -> bool:
        """Whether the words around an amount make sure that the clip is meant."""
        text, left, right = match[0], self.words.free_left(match.start()), self.words.free_right(match.end())
        if how == "free":
            bare = text == match["number"] + match["gap"] + match["unit"]
            decade = not match["gap"] and match["unit"] == "s" and match["number"] in map(str, _DECADES)
            return left and right and not (bare and (decade or match["number"].lower() in ("a", "an")))
        if how == "said":
            noun = re.search(rf"\b{_CLIP}\s*$", self.words.text[: match.start()], re.I)
            return right and bool(left or noun or re.match(r"(?:it|the|this|that|which)\b", text, re.I))
        if how == "ends":
            last = not several and re.match(r"(?:all\s+)?(?:for|over)\b", text, re.I) and self.words.ends(match.end())
            return (left and right) or bool(last)
        return True

    def _rates(self) -> list[tuple[tuple[int, int], Any, str]]:
        found = [
            (match.span(), _number(match["number"]), "") for each in _FPS for match in each.finditer(self.words.text)
        ]
        return [each for each in found if 1 <= each[1] <= 240]

    def _seeds(self) -> list[tuple[tuple[int, int], Any, str]]:
        found = []
        for match in _SEED.finditer(self.words.text):
            sure = match["how"] or match["mark"] or self.words.free_left(match.start())
            if sure and (self.words.free_right(match.end()) or match["mark"] in (":", "=")):
                found.append((match.span(), int(match["number"]), ""))
        return found

    def _sizes(self) -> list[tuple[tuple[int, int], Any, str]]:
        found = []
        pattern = _of(
            r"(?<!\w)(?:(?P<how>at|in|with|using|of)\s+)?(?:(?P<article>an?|the)\s+)?"
            r"(?P<named>(?:frame )?(?:size|resolution|dimensions?)\s*(?:of|:|=|is)?\s*)?"
            rf"{_SIZE}(?P<pixels>\s*-?\s*(?:px|pixels?|resolution)\b)?(?![\w.]*\w)"
        )
        for match in pattern.finditer(self.words.text):
            width, height = int(match["width"]), int(match["height"])
            noun = re.match(rf"\s+(?={_CLIP}\b)", self.words.text[match.end() :], re.I)
            sure = match["named"] or match["pixels"]
            if match["by"].lower() == "by" and not sure:
                continue
            left, right = self.words.free_left(match.start()), self.words.free_right(match.end())
            stands = right and (left or (match["how"] or "").lower() in ("at", "in"))
            if min(width, height) >= 16 and (sure or stands) and (right or sure):
                found.append((match.span(), (width, height), ""))
            elif noun and min(width, height) >= 16 and match["how"] is None:
                found.append(
                    (match.span(), (width, height), _article(match["article"], self.words.text[match.end() :]))
                )
        return found


_CALLED = {"fps": "frame rate", "seed": "seed", "size": "size", "frames": "number of frames", "seconds": "duration"}


def _article(given: str | None, noun: str) -> str:
    """The article for a noun in place of the one that stood before a number; a blank for none."""
    if given is None or given.lower() == "the":
        return given or " "
    made = "an" if noun.lstrip()[:1].lower() in "aeiou" else "a"
    return made.capitalize() if given[0] == "A" else made


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _links(text: str, end: int) -> bool:
    return re.match(r"\s+(?:of|with|where|in which|that|showing|about|from|in|on)\b", text[end:], re.I) is not None


def _inside(match: re.Match, found: dict[tuple[int, int], Any]) -> bool:
    return any(start < match.end() and match.start() < end for start, end in found)


def _number(text: str) -> float:
    words = " ".join(text.lower().split())
    value = _WORDS[words] if words in _WORDS else float(words.replace(",", "."))
    return int(value) if value == int(value) else value


def _value(match: re.Match, unit: str) -> float | None:
    """Seconds, or frames; None for what none can be."""
    value = _number(match["number"])
    if unit == "seconds" and "unit" in match.groupdict() and match["unit"].lower().startswith("m"):
        value *= 60
    if value <= 0 or (unit == "frames" and value != int(value)) or (unit == "seconds" and value > 999):
        return None
    return value
