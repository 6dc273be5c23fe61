"""Subjects and scenes: their prompts, the words by which subjects are looked for, and boxes, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.control.spans import find_words, text_tokens
from genkit.errors import UsageError, counted, explain

if TYPE_CHECKING:
    import torch

#: left, top, right, bottom as shares of the canvas
Box = Sequence[float]
#: (role of a row, number of a subject)
Place = tuple[str, int]
_ARTICLES = ("a ", "an ", "the ")


def keyword_of(subject: str) -> str:
    """The words by which a subject is looked for: its description without an article."""
    text = " ".join(subject.split())
    return next((text[len(each) :] for each in _ARTICLES if text.lower().startswith(each)), text)


def check_keyword(keyword: str, prompt: str, what: str) -> None:
    """Refuse a prompt that does not have the words by which a subject is looked for; UsageError says what to do."""
    try:
        find_words(prompt, keyword)
    except UsageError as error:
        raise UsageError(
            f"{what} does not name {keyword!r}, by which the subject is looked for; say it there in the same words, "
            f"give the words it has as the subject's keyword, or a box for it"
        ) from error


@dataclass(frozen=True)
class Cast:
    """Subjects and scenes with their names in a batch.

    Args:
        portraits, scenes: role -> prompt.
        keywords: of every subject.
        boxes: (role of a scene, number of a subject) -> box.
    """

    portraits: dict[str, str]
    scenes: dict[str, str]
    keywords: list[str]
    boxes: dict[Place, Box]

    @classmethod
    def of(
        cls, subjects: Sequence[str], scenes: Sequence[str], keywords: Sequence[str | None],
        boxes: Mapping[tuple[int | None, int], Box],
    ) -> Cast:  # fmt: skip
        for what, texts in (("subjects", subjects), ("scenes", scenes)):
            if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise UsageError(explain(what, texts, "a list of one text or more, none of them empty"))
        if len(keywords) > len(subjects):
            raise UsageError(
                f"{counted(len(keywords), 'keyword')} for {counted(len(subjects), 'subject')}; give one for "
                "each, or fewer"
            )
        given = [*keywords, *[None] * (len(subjects) - len(keywords))]
        words = [word or keyword_of(text) for word, text in zip(given, subjects, strict=True)]
        roles = {f"scene-{number + 1}": text for number, text in enumerate(scenes)}
        placed: dict[Place, Box] = {}
        for (scene, number), box in sorted(boxes.items(), key=lambda item: item[0][0] is not None):
            check_box(box)
            if not 0 <= number < len(subjects):
                raise UsageError(explain("subject of a box", number + 1, f"1 to {len(subjects)}"))
            if scene is not None and not 0 <= scene < len(scenes):
                raise UsageError(explain("scene of a box", scene + 1, f"1 to {len(scenes)}"))
            chosen = roles if scene is None else [f"scene-{scene + 1}"]
            placed.update({(role, number): tuple(box) for role in chosen})
        found = cls({f"subject-{n + 1}": text for n, text in enumerate(subjects)}, roles, words, placed)
        for number, text in enumerate(subjects):
            check_keyword(words[number], text, f"subject {text!r}")
        for role, text in roles.items():
            for number, word in enumerate(words):
                if (role, number) not in placed and not found.absent(text, number):
                    check_keyword(word, text, f"scene {text!r}")
        return found

    @property
    def first(self) -> str:
        """Role of the first scene."""
        return next(iter(self.scenes))

    def absent(self, text: str, number: int) -> bool:
        """Whether a scene leaves a subject out: of several subjects a scene may show some."""
        return len(self.keywords) > 1 and self.keywords[number].lower() not in text.lower()

    def wanted(self) -> dict[Place, tuple[str, str]]:
        """What is looked for in the rehearsal: the row's prompt and the words."""
        found: dict[Place, tuple[str, str]] = {}
        for number, (role, text) in enumerate(self.portraits.items()):
            found[role, number] = (text, self.keywords[number])
        for role, text in self.scenes.items():
            for number, word in enumerate(self.keywords):
                if (role, number) not in self.boxes and not self.absent(text, number):
                    found[role, number] = (text, word)
        return found

    def boxed(self, size: tuple[int, int]) -> dict[Place, torch.Tensor]:
        """Masks of the boxes."""
        from genkit.editing.ir_diffusion.masks import box_mask

        return {place: box_mask(box, size) for place, box in self.boxes.items()}

    def named(
        self, masks: Mapping[tuple[int | None, int], torch.Tensor], size: tuple[int, int]
    ) -> dict[Place, torch.Tensor]:
        """Masks of an earlier output by the names of their rows.

        Args:
            masks: (number of a scene or None for a portrait, number of a subject) -> bool (H, W).
            size: that they must have.

        Raises:
            UsageError: a subject or scene that is not there, a portrait without a mask, or a mask of another size.
        """
        scenes, found = list(self.scenes), {}
        for (scene, number), mask in masks.items():
            if not 0 <= number < len(self.keywords) or (scene is not None and not 0 <= scene < len(scenes)):
                allowed = f"scenes None or 0 to {len(scenes) - 1}, subjects 0 to {len(self.keywords) - 1}"
                raise UsageError(explain("place of a mask", (scene, number), allowed))
            if tuple(mask.shape) != size:
                raise UsageError(explain("size of a mask", tuple(mask.shape), f"{size}, the latents' grid"))
            found[f"subject-{number + 1}" if scene is None else scenes[scene], number] = mask.bool()
        for number, role in enumerate(self.portraits):
            if (role, number) not in found:
                raise UsageError(f"no mask of the portrait {self.portraits[role]!r}: give masks[None, {number}]")
        return found

    def words(self, pipe: Any, scene: str, number: int, slots: int | None) -> tuple[int, ...]:
        """Positions of a subject's words in a scene's text; none where it does not name them."""
        text, word = self.scenes[scene], self.keywords[number]
        return text_tokens(pipe, text, word, slots=slots) if word.lower() in text.lower() else ()

    def told(self) -> tuple[str, ...]:
        """Scenes that leave subjects out, one line each."""
        return tuple(
            f"the scene {text!r} does not name {word!r}, so that subject is left out of it"
            for role, text in self.scenes.items()
            for number, word in enumerate(self.keywords)
            if (role, number) not in self.boxes and self.absent(text, number)
        )


def check_box(box: Box) -> None:
    """Refuse what is no box inside the canvas; UsageError."""
    numbers = list(box) if isinstance(box, (list, tuple)) else []
    fine = len(numbers) == 4 and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
    if not fine or not (0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1):
        raise UsageError(explain("box", box, "left, top, right, bottom from 0 to 1, left < right and top < bottom"))
