"""The schema filled by a language model that chooses: the JSON is written here, the model decides among allowed values.

Free text is written by the model for prompts alone, so that every answer is valid and nothing has to be searched in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from genkit.errors import GenkitError, UsageError
from genkit.pipelines.instruction.files import Found
from genkit.pipelines.instruction.rules import free_roles, prompt_written
from genkit.pipelines.instruction.schema import BUDGETS, ROLES, Input, Instruction
from genkit.reading import parse_json

#: Prompts of one answer at most, and characters of one.
MOST_PROMPTS, MOST_CHARACTERS = 8, 2000
#: Seconds that can be meant by words; others have to be written in digits.
_SECONDS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 60)
#: Numbers that an instruction may hold; more are no instruction.
_MOST_NUMBERS = 24
_NUMBER = re.compile(r"(?<![\w.,])-?\d{1,6}(?:[.,]\d{1,3})?(?![\d])")
_SIZE = re.compile(r"(?<!\d)(\d{2,5})\s*[x×*]\s*(\d{2,5})(?!\d)", re.IGNORECASE)
NULL = "null"


class Reader(Protocol):
    """What reads: a language model, or what stands for one in tests."""

    def ask(self, question: str) -> None:
        """Begin with what is to be answered."""

    def scores(self, answer: str, options: Sequence[str]) -> list[float]:
        """How well every option goes on from the answer so far; the largest is taken."""

    def text(self, answer: str, most: int) -> str | None:
        """How the answer goes on up to a closing quote, as it stands in JSON; None when none comes."""


class Unusable(GenkitError):
    """An answer that means nothing; the rules take over."""


QUESTION = """You turn an instruction for a video generator into JSON. Answer with the JSON alone.
"inputs": the role of every given file. Roles:
{roles}
"frames", "seconds": length of the whole video, null where the instruction does not say it.
"fps": frames per second. "size": width x height in pixels. null where the instruction does not say it.
"sound": true where the video is to have sound.
"budget": speed, quality or memory where the instruction asks for it, else null.
"prompts": what is seen, as a caption in plain words, without names of files, lengths and sizes. One caption; several
only for scenes that follow each other.
"durations": seconds of every scene, null where the instruction does not say them.

Example. Files: cat.png (picture), end.jpg (picture). Instruction: Let the cat in cat.png run for two seconds and stop
as in end.jpg
{{"inputs": [{{"file": "cat.png", "role": "first_frame"}}, {{"file": "end.jpg", "role": "last_frame"}}], "seconds": 2, \
"sound": false, "budget": null, "prompts": ["a cat runs and stops"]}}

Files: {files}. Instruction: {instruction}"""


class Answer:
    """The JSON in the making.

    Args:
        reader: chooses. settings: what is written stays, and is not asked for. files: without a role yet.
    """

    def __init__(self, reader: Reader, settings: Any, files: tuple[Found, ...]):
        self.reader, self.settings, self.files = reader, settings, files
        self.json, self.values = "{", dict[str, Any]()
        self.words = settings.instruction

    def made(self) -> Instruction:
        """The instruction, filled.

        Raises:
            Unusable: a prompt that is empty or has no end, or values that do not go together.
        """
        kinds = ", ".join(f"{each.name} ({each.kind})" for each in self.files) or "none"
        usable = {each.kind for each in self.files}
        roles = "\n".join(f"{name}: {role.means}" for name, role in ROLES.items() if usable & set(role.settings))
        self.reader.ask(QUESTION.format(roles=roles or "(no file is given)", files=kinds, instruction=self.words))
        self._add_inputs()
        self._add_length()
        self._add_size()
        self._add_wishes()
        if not prompt_written(self.settings):
            self._add_prompts()
        try:
            return Instruction.from_dict(self.values)
        except UsageError as error:
            raise Unusable(str(error)) from error

    def _choose(self, options: Sequence[str], end: str) -> str:
        """One of the options, written into the answer; where there is one there is nothing to ask."""
        best = 0
        if len(options) > 1:
            scores = self.reader.scores(self.json, [f"{each}{end}" for each in options])
            best = max(range(len(options)), key=lambda number: scores[number])
        self.json += options[best]
        return options[best]

    def _field(self, name: str, options: Sequence[str]) -> Any:
        """The value of a field, chosen."""
        self._key(name)
        return parse_json(self._choose(options, ","), f"field {name}")

    def _key(self, name: str) -> None:
        self.json += f'{"" if self.json == "{" else ", "}"{name}": '

    def _add_inputs(self) -> None:
        if not self.files:
            return
        self._key("inputs")
        self.json += "["
        inputs: list[Input] = []
        for number, each in enumerate(self.files):
            self.json += f'{", " if number else ""}{{"file": {json.dumps(each.name, ensure_ascii=False)}, "role": '
            numbers = [text for text in self._numbers() if "." not in text]
            roles = free_roles(self.settings, each.kind, inputs)
            roles = [role for role in roles if role != "keyframe" or numbers]
            if not roles:
                raise Unusable(f"{each.name}: no role is left for this {each.kind}")
            role = parse_json(self._choose([json.dumps(role) for role in roles], "}"), "role")
            frame = None
            if role == "keyframe":
                self.json += ', "frame": '
                frame = int(self._choose(numbers, "}"))
            inputs.append(Input(each.path, each.kind, role, frame))
            self.json += "}"
        self.json += "]"
        self.values["inputs"] = [each.__dict__ for each in inputs]

    def _add_length(self) -> None:
        """Frames where the instruction has a number, else seconds."""
        if self.settings.asked("num_frames"):
            return
        numbers = [text for text in self._numbers() if not text.startswith("-") and float(text) > 0]
        whole = [text for text in numbers if "." not in text]
        frames = self._field("frames", [NULL, *whole]) if whole else None
        if frames is not None:
            self.values["frames"] = frames
            return
        seconds = self._field("seconds", [NULL, *self._seconds(numbers)])
        if seconds is not None:
            self.values["seconds"] = seconds

    def _add_size(self) -> None:
        rates = [] if self.settings.asked("fps") else self._numbers()
        rates = [text for text in rates if 1 <= float(text) <= 240]
        if rates and (fps := self._field("fps", [NULL, *rates])) is not None:
            self.values["fps"] = fps
        sizes = dict.fromkeys(f'"{int(w)}x{int(h)}"' for w, h in _SIZE.findall(self.words) if int(w) and int(h))
        if sizes and not (self.settings.asked("width") or self.settings.asked("height")):
            size = self._field("size", [NULL, *list(sizes)[:_MOST_NUMBERS]])
            if size is not None:
                self.values["width"], self.values["height"] = map(int, size.split("x"))

    def _add_wishes(self) -> None:
        self.values["sound"] = self._field("sound", ["false", "true"])
        budget = self._field("budget", [NULL, *map(json.dumps, BUDGETS)])
        if budget is not None:
            self.values["budget"] = budget

    def _add_prompts(self) -> None:
        self._key("prompts")
        self.json += "["
        prompts: list[str] = []
        most = 1 if self.settings.stream else MOST_PROMPTS
        while True:
            self.json += '"'
            prompts.append(self._prompt())
            self.json += f"{json.dumps(prompts[-1], ensure_ascii=False)[1:]}"
            if len(prompts) == most or self._choose(["]", ", "], "") == "]":
                break
        if len(prompts) == most:
            self.json += "]"
        self.values["prompts"] = prompts
        known = {"frames", "seconds"} & set(self.values) or self.settings.asked("num_frames")
        if len(prompts) > 1 and not known:
            self._add_durations(len(prompts))

    def _add_durations(self, count: int) -> None:
        self._key("durations")
        options = self._seconds([text for text in self._numbers() if not text.startswith("-") and float(text) > 0])
        first = self._choose([NULL, *(f"[{each}" for each in options)], "")
        if first == NULL:
            return
        durations = [first[1:]]
        while len(durations) < count:
            self.json += ", "
            durations.append(self._choose(options, "]" if len(durations) == count - 1 else ","))
        self.json += "]"
        self.values["durations"] = [parse_json(each, "a duration") for each in durations]

    def _prompt(self) -> str:
        """A prompt in the model's words; :class:`Unusable` for none."""
        raw = self.reader.text(self.json, MOST_CHARACTERS)
        if raw is None:
            raise Unusable("its prompt has no end")
        try:
            # What JSON wants escaped, such as a line break, is meant as it stands.
            text = parse_json(f'"{_CONTROL.sub(" ", raw)}"', "the prompt")
        except GenkitError as error:
            raise Unusable("its prompt is no text") from error
        text = " ".join(_CONTROL.sub(" ", text).split())
        if not any(map(str.isalnum, text)) or "\ufffd" in text or _HALF.search(text):
            raise Unusable("its prompt has no words")
        if len(text) > MOST_CHARACTERS:
            raise Unusable("its prompt has no end")
        return text

    def _numbers(self) -> list[str]:
        """The numbers that the instruction holds in digits, as JSON has them."""
        text = _SIZE.sub(" ", self.words)
        for each in self.files:
            text = text.replace(each.path, " ").replace(each.name, " ")
        found = (each.replace(",", ".") for each in _NUMBER.findall(text))
        plain = (f"{float(each):g}" if "." in each else str(int(each)) for each in found)
        return list(dict.fromkeys(plain))[:_MOST_NUMBERS]

    def _seconds(self, numbers: list[str]) -> list[str]:
        return list(dict.fromkeys([*(f"{each:g}" for each in _SECONDS), *numbers]))


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HALF = re.compile(r"[\ud800-\udfff]")
