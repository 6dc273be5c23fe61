"""Phrases that say what a file is for, in English: the role is understood, and the phrase is no part of the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from genkit.errors import UsageError
from genkit.pipelines.instruction.files import Mention, cased, same
from genkit.pipelines.instruction.masked import FILE, Masked
from genkit.pipelines.instruction.schema import CLIP, PICTURE, SOUND, TRACK

_THE = r"(?:(?:the|an?|my|this|that|our|your)\s+)?"
_CLIP = r"(?:video clip|video|clip|film|shot|animation|movie|footage|scene|sequence|gif)"
_KIND = (
    rf"(?:(?:given|attached|following|input|source|still)\s+)?(?:picture|image|photo|photograph|frame|still|screenshot|"
    rf"drawing|painting|file|{_CLIP}|recording|sound|audio|song|music|track)\s+(?:(?:in|of|from|called|named|file)\s+)?"
)
#: A file with what it is called before its name.
_REF = rf"{_THE}(?:{_KIND})?(?P<file>{FILE})"
_TWO = rf"{_THE}(?:{_KIND})?(?P<one>{FILE})", rf"{_THE}(?:{_KIND})?(?P<two>{FILE})"
_FRAME = r"[\s-]?(?:key)?(?:frame|picture|image|photo|shot|still|one)"
_FIRST, _LAST = r"(?:first|opening|starting|start|initial|beginning)", r"(?:very last|last|final|closing|ending|end)"
#: What a role is called, where these words alone tell it.
_LONG = {
    "first_frame": rf"{_FIRST}{_FRAME}",
    "last_frame": rf"{_LAST}{_FRAME}",
    "subject": rf"(?:(?:visual|character|subject|identity|image)\s+)?references?(?:{_FRAME})?|subject|character",
    "style": r"style(?: reference)?",
    "mask": r"mask",
    "control": rf"(?:(?:control|guide|guidance)(?:{_FRAME})?|depth|edge|pose|canny)(?: map| video| clip)?",
    "sound": r"sound ?track|sound|audio|music",
    "source": r"(?:source|input|base)(?: video| clip| footage)?",
    "boxes": r"boxes|track|path|trajectory",
    "keyframe": r"frame\s+(?:number\s+|no\.?\s*|#\s*)?(?P<number>-?\d{1,6})",
}  # fmt: skip
#: And where a mark has to make it sure.
_SHORT = {"first_frame": r"start|beginning|opening|first", "last_frame": r"end|ending|finish|last"}


def _named(roles: dict[str, str]) -> str:
    return "(?:" + "|".join(f"(?P<{name}>{words})" for name, words in roles.items()) + r")(?![\w-])"


_OF_IT = rf"(?:\s+(?:of|in)\s+(?:the|this)\s+{_CLIP})?"
_ANY = _named({name: f"{words}|{_SHORT[name]}" if name in _SHORT else words for name, words in _LONG.items()})
_IT = (
    rf"(?:(?:(?:so|such)\s+that\s+)?(?:(?:let|make|have)\s+)?(?:it|everything|(?:the|this)\s+{_CLIP})\s+)?"
    r"(?:(?:should|must|shall|will|has to|needs to|is to|to)\s+)?(?:finally\s+)?"
)
_AS = r"(?:\s+(?:in|on|like|at|with|from|showing|shown in|exactly))*"


def _of(*parts: str) -> re.Pattern:
    return re.compile("".join(parts), re.IGNORECASE)


_IS = r"(?:is|being|should be|must be|shall be|will be)"
_TAKE = r"(?:use|using|take|taking|have|having|treat|treating|set|put|with|given|keep|and|make)"
_SHOW = r"(?:show|showing|put|place|have|having|see|use|using|with)"
_END = (
    r"(?:end|ends|ending|finish|finishes|finishing|stop|stops|stopping|conclude|concludes|concluding|close|closes|"
    r"closing|arrive|arrives|arriving|land|lands|landing)"
)
_START = r"(?:start|starts|starting|begin|begins|beginning|open|opens|opening)"
_REACH = r"(?:(?:it|we|she|he|they|the \w+)\s+(?:reach(?:es)?|arrives? at|becomes?|looks? like|match(?:es)?)\s+)?"
#: Pattern -> role of its file; None where its groups tell it.
_PHRASES: tuple[tuple[re.Pattern, str | None], ...] = (
    (_of(rf"(?<!\w)(?:(?:from|to|with|use|using|on|at|in)\s+)?{_REF}\s*[(\[]\s*{_THE}{_ANY}\s*[)\]]"), None),
    (_of(rf"(?<!\w)(?:(?:by\s+)?{_TAKE}\s+)?{_REF}\s+(?:as|for|to be)\s+{_THE}{_ANY}{_OF_IT}"), None),
    (_of(rf"(?<!\w)(?:{_SHOW}\s+)?{_REF}\s*(?:=|:|(?<=\s)(?:{_IS}|at)(?=\s)|(?<=\s)(?=the\s))\s*",
         rf"{_THE}{_ANY}{_OF_IT}"), None),
    (_of(rf"(?<!\w)(?:(?:as|for|with|at|in|use|using)\s+)?{_THE}{_named(_LONG)}{_OF_IT}\s*",
         rf"(?:[:=,–—-]|(?<=\s)(?:{_IS}|use|using|take|from|of|show|shows|showing)(?=\s))?\s*{_REF}"), None),
    (_of(rf"(?<!\w)(?:at\s+)?{_THE}{_named(_SHORT)}{_OF_IT}\s*[:=]\s*{_REF}"), None),
    (_of(rf"(?<!\w){_IT}{_END}\s+(?:up\s+)?(?:on|at|in|with|as|like|exactly){_AS}\s+{_REF}"), "last_frame"),
    (_of(rf"(?<!\w)(?:until|till|up to|all the way to)\s+{_REACH}{_REF}"), "last_frame"),
    (_of(rf"(?<!\w){_IT}{_START}\s+(?:off\s+|out\s+)?(?:from|with|on|at|in|as|like){_AS}\s+{_REF}"), "first_frame"),
    (_of(rf"(?<!\w)(?:who|that|which)\s+(?:looks?|is)\s+(?:just\s+|exactly\s+)?like\s+(?:in\s+)?{_REF}"), "subject"),
    (_of(rf"(?<=\s)to\s+{_REF}"), "goes"),
)  # fmt: skip
#: What leads to the last picture.
_GOES = _of(
    r"\b(?:go|goes|going|move|moves|moving|fade|fades|fading|dissolve|dissolves|dissolving|transition|transitions|"
    r"transitioning|morph|morphs|morphing|change|changes|changing|cut|cuts|cutting|switch|switches|switching|"
    r"evolve|evolves|evolving|lead|leads|leading|blend|blends|blending|get|gets|getting|return|returns|returning)"
    r"\s+(?:\w+ly\s+)?(?:back\s+|over\s+)?$"
)
_SOUND = _of(
    r"(?<!\w)(?:(?:set|synced|synchroni[sz]ed|timed)\s+)?(?:to|with|for|over)\s+(?:the\s+)?",
    r"(?:(?:sound|music|beat|rhythm|audio|song|sound ?track|tune|voice)\s+(?:of|in|from|on)\s+)?",
    _REF,
)
_TRACK = _of(
    r"(?<!\w)(?:follow(?:s|ing)?|along|by|with|on)\s+(?:the\s+)?(?:(?:boxes|track|path|trajectory)\s+(?:in|of|from)\s+)?",
    _REF,
)
_TAIL = r"(?:\s*(?:so that|such that|so|where|in which|with|by)(?=\s))?"
_CONTINUE = _of(
    rf"(?<!\w)(?:continue|continuing|extend|extending|resume|resuming|prolong|go on|carry on|pick up)\s+(?:on\s+)?"
    rf"(?:(?:from|with|where)\s+)?{_REF}(?:\s+(?:ends|stops|left off))?{_TAIL}"
)
_ANIMATE = _of(rf"(?<!\w)(?:animate|animating|bring)\s+{_REF}(?:\s+to life)?{_TAIL}")
_PAIRS = (
    _of(rf"(?<!\w)(?P<go>(?:go|going)\s+)?(?:{_IT}{_START}\s+)?from\s+{_TWO[0]}\s+",
        rf"(?:on\s+|all the way\s+)?(?:in)?to\s+{_TWO[1]}"),
    _of(rf"(?<!\w)between\s+{_TWO[0]}\s+and\s+{_TWO[1]}"),
    _of(rf"(?<!\w)(?:from\s+)?{_TWO[0]}\s*(?:->|-->|=>|→|➔|\bto\b|\buntil\b)\s*{_TWO[1]}"),
)  # fmt: skip
_BOTH_ENDS = _of(rf"(?<!\w){_IT}{_START}\s+and\s+{_END}\s+(?:on|at|in|with|as|like){_AS}\s+{_REF}")
_BESIDE = _of(rf"(?<!\w){_THE}{_named(_SHORT)}\s+{_REF}")
_PLACE = _of(
    r"(?<!\w)(?:(?:that|which|who)\s+(?:is|are)\s+)?(?:(?:as|just like|exactly like|like)\s+)?",
    r"(?:(?:shown|seen|depicted|pictured|visible|appearing|you see|",
    r"(?:made|generated|created|built|rendered|produced)(?:\s+out)?)\s+)?",
    rf"(?:in|on|of|from|inside|within|with|using|given|based on|according to|like|via)\s+{_REF}",
)
_BRACKETS = _of(rf"\(\s*{_REF}\s*\)|\[\s*{_REF.replace('<file>', '<other>')}\s*\]")
_ALONE = _of(rf"(?<!\w)(?:(?:please\s+)?(?:use|take|see|here is|this is|given)\s+)?{_REF}")
_AND = _of(rf"(?<!\w)(?:(?:use|take|see)\s+)?{_TWO[0]}\s*(?:,|and|then|,\s*and|,\s*then|and then)\s*{_TWO[1]}")
#: Whether a text is English: only then a noun stands for a file in it.
_ENGLISH = _of(r"\b(?:the|an?|and|with|from|of|make|let|is|it|this|that|as|at|to|into)\b")
_INTO = _of(r"\b(?:into|becomes?|becoming|reach(?:es|ing)?)\s*$")


@dataclass
class Roles:
    """What the phrases of a text say about its files.

    Args:
        words: the text; what is understood is cut out of it.
        found: (file, role, number of its frame); a role of None is left to the order of the files.
        kept: names of files that stay in the text.
    """

    words: Masked
    found: list[tuple[Mention, str | None, int | None]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def read(self) -> Roles:
        """Cut what is understood, the surest phrases first."""
        for pattern in _PAIRS:
            self.words.cut(pattern, self._pair)
        self.words.cut(_BOTH_ENDS, self._loop)
        for pattern, role in _PHRASES:
            self.words.cut(pattern, self._phrase(role))
        self.words.cut(_BESIDE, self._short)
        self.words.cut(_SOUND, self._of_kind(SOUND, "sound"))
        self.words.cut(_TRACK, self._of_kind(TRACK, "boxes"))
        self.words.cut(_CONTINUE, self._open)
        self.words.cut(_ANIMATE, self._open)
        self.words.cut(_BRACKETS, self._open)
        self.words.cut(_AND, self._both)
        self.words.cut(_ALONE, self._alone)
        self.words.cut(_PLACE, self._open)
        self._rest()
        return self

    def said(self) -> dict[str, list[tuple[str, str, int | None]]]:
        """Path of every file whose role is said -> (kind, role, frame), each role once."""
        paths: dict[str, list[tuple[str, str, int | None]]] = {}
        for mention, role, number in sorted(self.found, key=lambda each: each[0].start):
            known = next((path for path in paths if same(path, mention.path)), mention.path)
            if role is not None and (mention.kind, role, number) not in paths.setdefault(known, []):
                paths[known].append((mention.kind, role, number))
        return paths

    def _give(self, mask: str, role: str | None, number: int | None = None) -> str:
        self.found.append((self.words.mention(mask), role, number))
        return ""

    def _pair(self, match: re.Match) -> str | None:
        kinds = {self.words.mention(match[name]).kind for name in ("one", "two")}
        goes = match.groupdict().get("go") and not self.words.free_left(match.start())
        if kinds != {PICTURE} or goes:
            return None
        self._give(match["one"], "first_frame")
        return self._give(match["two"], "last_frame")

    def _loop(self, match: re.Match) -> str | None:
        if self.words.mention(match["file"]).kind != PICTURE:
            return None
        self._give(match["file"], "first_frame")
        return self._give(match["file"], "last_frame")

    def _short(self, match: re.Match) -> str | None:
        if not (self.words.free_left(match.start()) and self.words.free_right(match.end())):
            return None
        return self._phrase(None)(match)

    def _phrase(self, role: str | None) -> Callable[[re.Match], str | None]:
        def take(match: re.Match) -> str | None:
            groups, mention = match.groupdict(), self.words.mention(match["file"])
            if role == "goes":
                before = self.words.text[max(0, match.start() - 40) : match.start()]
                if mention.kind != PICTURE or not _GOES.search(before):
                    return None
                return self._give(match["file"], "last_frame")
            said = role or next(name for name in _LONG if groups.get(name) is not None)
            fits = _fitting(said, mention)
            if fits is None:
                return None
            number = groups.get("number")
            return self._give(match["file"], fits, None if number is None else int(number))

        return take

    def _of_kind(self, kind: str, role: str) -> Callable[[re.Match], str | None]:
        def take(match: re.Match) -> str | None:
            return self._give(match["file"], role) if self.words.mention(match["file"]).kind == kind else None

        return take

    def _open(self, match: re.Match) -> str:
        return self._give(match.groupdict().get("other") or match["file"], None)

    def _both(self, match: re.Match) -> str | None:
        if not (self.words.free_left(match.start()) and self.words.free_right(match.end())):
            return None
        self._give(match["one"], None)
        return self._give(match["two"], None)

    def _alone(self, match: re.Match) -> str | None:
        end = match.end()
        behind, before = self.words.text[end:], self.words.text[: match.start()].rstrip()
        linked = re.match(r"\s*(?:,\s*)?(?:and|then|so that|such that)\b", behind, re.I)
        asked = re.match(r"(?:please\s+)?(?:use|take|see|here|this|given)\b", match[0], re.I)
        begins = re.match(r"\s+(?:the|an?|she|he|it|they|her|his|make|let)\b", behind, re.I)
        apart = (before and not cased(before[-1])) or self.words.mention(match["file"]).text[0] == "@"
        left = self.words.free_left(match.start()) or apart
        right = self.words.free_right(end) or (asked and linked) or begins
        return self._give(match["file"], None) if left and right else None

    def _rest(self) -> None:
        """Files whose place in the sentence is not understood: a noun stands for them."""
        english = _ENGLISH.search(self.words.text) is not None
        pictures = {each.path for each in self.words.mentions if each.kind == PICTURE}
        for match in re.finditer(rf"{_REF}", self.words.text, re.I):
            mention = self.words.mention(match["file"])
            last = mention.kind == PICTURE and _INTO.search(self.words.text[: match.start()]) is not None
            self.found.append((mention, "last_frame" if last else None, None))
        verb = rf"^\s*(?P<file>{FILE})(?=\s+[a-z]+s\b)"
        if len(pictures) == 1 and re.search(verb, self.words.text) and len(re.findall(FILE, self.words.text)) == 1:
            self.words.cut(re.compile(verb), lambda match: "it")
        elif english:
            self.words.cut(re.compile(_REF, re.I), lambda match: self._noun(match, len(pictures)))
        else:
            self.kept += [self.words.mention(mask).text for mask in re.findall(FILE, self.words.text)]

    def _noun(self, match: re.Match, pictures: int) -> str:
        mention = self.words.mention(match["file"])
        if mention.kind != PICTURE:
            return {CLIP: "the clip", SOUND: "the sound", TRACK: "the boxes"}[mention.kind]
        if pictures == 1:
            return "the picture"
        order = list(dict.fromkeys(each.path for each in self.words.mentions if each.kind == PICTURE))
        return "the first picture" if order.index(mention.path) == 0 else "the last picture"


def _fitting(role: str, mention: Mention) -> str | None:
    """The role that a word for it means for a kind of file; None where it says nothing of one."""
    if mention.kind == SOUND:
        return "sound"
    if mention.kind == TRACK:
        return "boxes"
    if role in ("sound", "boxes"):
        return None
    if mention.kind == CLIP:
        if role in ("last_frame", "keyframe"):
            raise UsageError(
                f"--instruction: {mention.text} is a clip, and a {role.replace('_', ' ')} is a picture; name a picture"
            )
        return "source" if role in ("first_frame", "subject", "source", "style") else role
    return "first_frame" if role == "source" else role
