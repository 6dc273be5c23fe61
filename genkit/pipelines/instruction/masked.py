"""A text with its files and quotations masked, out of which understood words are cut until a sentence is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from genkit.pipelines.instruction.files import Mention

#: Where something was cut out; one character a file, and one a quotation, which nothing is cut out of.
CUT, _FILES, _QUOTES, _MOST = "\ue000", 0xE100, 0xF000, 0x700
FILE = f"[{chr(_FILES)}-{chr(_FILES + _MOST)}]"
_MASKS = re.compile("[\ue000-\uf8ff]")
#: What a phrase can stand between.
_BOUNDS = ",;:.!?()[]–—\n" + CUT
_LINKS = r"(?:and then|and|then|but|plus|also|before|while|until|so)"
_LINK_BEFORE = re.compile(rf"(?:^|(?<=[\s{CUT}])){_LINKS}\s*$", re.IGNORECASE)
_LINK_BEHIND = re.compile(rf"^{_LINKS}\b\s*", re.IGNORECASE)


@dataclass
class Masked:
    """A text in the making.

    Args:
        text: what is left, masked.
        mentions: the files that are masked, by the order of their masks.
        quotes: the quotations, likewise.
        taken: what was cut out, as it stood there.
        upper: whether it began with a capital letter.
    """

    text: str
    mentions: Sequence[Mention]
    quotes: Sequence[str]
    taken: list[str] = field(default_factory=list)
    upper: bool = False

    @classmethod
    def of(cls, text: str, mentions: Sequence[Mention], quotes: Sequence[tuple[int, int]]) -> Masked | None:
        """None for a text that holds masks itself, or too many files: no words."""
        if _MASKS.search(text) or max(len(mentions), len(quotes)) > _MOST:
            return None
        masks = [(each.start, each.end, chr(_FILES + number)) for number, each in enumerate(mentions)]
        masks += [(start, end, chr(_QUOTES + number)) for number, (start, end) in enumerate(quotes)]
        made, place = [], 0
        for start, end, mask in sorted(masks):
            made += [text[place:start], mask]
            place = end
        # Single blanks, so that no phrase has to look for more.
        lines = [" ".join(line.split()) for line in "".join((*made, text[place:])).splitlines()]
        quoted = [text[start:end] for start, end in quotes]
        return cls("\n".join(line for line in lines if line), mentions, quoted, upper=text[:1].isupper())

    def mention(self, mask: str) -> Mention:
        """The file behind a mask."""
        return self.mentions[ord(mask) - _FILES]

    def cut(self, pattern: re.Pattern, take: Callable[[re.Match], str | None]) -> None:
        """Cut out every match that ``take`` understands; it returns what stays in its place, None where it does not."""
        place = 0
        while (match := pattern.search(self.text, place)) is not None:
            left = take(match)
            if left is None or match.start() == match.end():
                place = match.start() + 1
                continue
            self.cut_at(*match.span(), left)
            place = match.start() + len(left or CUT)

    def cut_at(self, start: int, end: int, left: str = "") -> None:
        """Cut out what stands between two places, but for what is left of it."""
        self.taken.append(self.told(self.text[start:end]))
        self.text = f"{self.text[:start]}{left or CUT}{self.text[end:]}"

    def free_left(self, place: int) -> bool:
        """Whether a phrase can begin here: behind the beginning, a mark or something that was cut."""
        before = _LINK_BEFORE.sub("", self.text[max(0, place - 200) : place].rstrip(" \t")).rstrip(" \t")
        return not before or before[-1] in _BOUNDS or before.endswith((" -", "\n-"))

    def free_right(self, place: int) -> bool:
        """Whether a phrase can end here."""
        behind = self.text[place : place + 200].lstrip(" \t")
        behind = _LINK_BEHIND.sub("", behind) if _LINK_BEHIND.sub("", behind)[:1] == CUT else behind
        return not behind or behind[0] in _BOUNDS or behind.startswith("- ")

    def ends(self, place: int) -> bool:
        """Whether nothing follows that is left."""
        return not re.sub(rf"[{re.escape(_BOUNDS)}\s]|\b{_LINKS}\b", "", self.text[place:], flags=re.IGNORECASE)

    def told(self, text: str) -> str:
        """Masked text as it stood there."""
        shown = _MASKS.sub(self._shown, text)
        return " ".join(shown.strip(" ,;:\n").split())

    def _shown(self, match: re.Match) -> str:
        number = ord(match[0])
        if number >= _QUOTES:
            return self.quotes[number - _QUOTES]
        return "" if match[0] == CUT else self.mentions[number - _FILES].text

    def sentence(self) -> str:
        """What is left, with no marks and links that had to do with what was cut."""
        text, marks = f" {self.text} ".replace("\n", " "), r"[\s,;:–—]{0,20}"  # bounded: no text makes it slow
        rules = (
            (r"\(\s?\)|\[\s?\]", CUT),
            # Two cuts with nothing but marks and links between.
            (rf"{CUT}{marks}(?:\b{_LINKS}\b)?\s?{CUT}", CUT),
            # A sentence of its own.
            (rf"([.!?])(?:\s?{CUT}\s?[.!?]){{1,20}}", r"\1"),
            # At the end of a sentence nothing is linked any more, at its beginning likewise.
            (rf"{marks}(?:(?<=\s){_LINKS})?\s?{CUT}{marks}(?=$|[.!?)\]])", ""),
            (rf"(^|[.!?(\[])\s?{CUT}{marks}(?:(?:{_LINKS}|where|in which|so that)\b)?{marks}", r"\1 "),
            # Between two marks one stays, between two links as well.
            (rf"[,;]\s?(?:{_LINKS}\b\s?)?{CUT}\s?(?=[,;:])", ""),
            (rf"\b{_LINKS}\s?{CUT}\s?(?={_LINKS}\b)", ""),
            (rf"\s?{CUT}\s?([,;:.!?)\]])", r"\1"),
        )
        for _ in range(12):  # brackets in brackets
            before = text
            for pattern, left in rules:
                text = re.sub(pattern, left, text, flags=re.IGNORECASE)
            if text == before:
                break
        text = re.sub(
            r"([,;:])(?:\s?[,;:]){1,20}(?=\s|$)", r"\1", re.sub(r"\s([,;.!?])", r"\1", text.replace(CUT, " "))
        )
        text = " ".join(text.split()).strip(" ,;:–—").removeprefix("- ").removesuffix(" -").lstrip(".!?) ")
        if self.upper:
            text = text[:1].upper() + text[1:]
        return _MASKS.sub(self._shown, text)
