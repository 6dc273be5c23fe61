"""What ``genkit consistent`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, counted, explain
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import MODEL, GenerationSettings, LoadSettings, OutputSettings
from genkit.pipelines.text import as_texts
from genkit.schema import Rule

#: Value of ``box``: found by the attention of the subject's words.
AUTO = "auto"


def parse_box(text: str, what: str = "--box") -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of a text, or None for :data:`AUTO`.

    Raises:
        UsageError: anything else, or no box inside the canvas.
    """
    if text.strip().lower() == AUTO:
        return None
    allowed = "left,top,right,bottom as shares of the canvas, such as 0,0.2,0.5,0.9, or auto"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(explain(what, text, allowed)) from error
    if len(values) != 4 or not (0 <= values[0] < values[2] <= 1 and 0 <= values[1] < values[3] <= 1):
        raise UsageError(explain(what, text, allowed))
    return values[0], values[1], values[2], values[3]


@dataclass(frozen=True)
class SubjectSettings(Settings):
    """Who appears in all pictures, and how strictly."""

    subject: tuple[str, ...] = option(
        (), 'A subject in a few words, such as "a red circle"; the scenes name it in the same words. Repeatable.',
        group="Subjects", parse=as_texts, prose=True,
    )  # fmt: skip
    scene: tuple[str, ...] = option(
        (), "A picture to make, with its subjects in it; each has its own output. Repeatable; the prompt is one too.",
        group="Subjects", parse=as_texts, stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    keyword: tuple[str, ...] = option(
        (), "Words by which a subject is found in the prompts, where they are not its description; in the order of the "
        "subjects. Repeatable.", group="Subjects", parse=as_texts, stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    box: tuple[str, ...] = option(
        (), "Where a subject is in the scenes: left,top,right,bottom as shares of the canvas, or auto; in the order of "
        "the subjects. Found by a rehearsal when left out. Repeatable.", group="Subjects", parse=as_texts,
        stored=WHEN_GIVEN,
    )  # fmt: skip
    isolation: bool = option(
        True, "Keep subjects from reading each other.", group="Subjects", stored=WHEN_GIVEN
    )  # fmt: skip
    reposition: bool = option(
        True, "Let subjects read their portraits.", group="Subjects", stored=WHEN_GIVEN
    )  # fmt: skip
    dropout: float = option(
        0.5, "Share of a subject that does not read its portrait, drawn anew in every step: less is more alike.",
        group="Subjects", rule=Rule(low=0, high=1),
    )  # fmt: skip
    text_share: float = option(
        0.9, "How far a subject follows its own description instead of the scene's, 0 to 1.", group="Subjects",
        rule=Rule(low=0, high=1),
    )  # fmt: skip

    start: float | None = option(
        None, "Share of the steps before which nothing acts on a subject, so that it comes where the rehearsal has it: "
        "0.35, in a box 0.", group="Subjects", rule=Rule(low=0, high=1),
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        for name in ("keyword", "box"):
            given = getattr(self, name)
            if len(given) > len(self.subject):
                raise UsageError(
                    f"--{name}: {len(given)} given for {counted(len(self.subject), 'subject')}; give one for "
                    "each, or fewer"
                )
        for text in self.box:
            parse_box(text)

    @property
    def boxes(self) -> dict[Any, tuple[float, float, float, float]]:
        """(None, number of a subject) -> its box in every scene."""
        parsed = {(None, number): parse_box(text) for number, text in enumerate(self.box)}
        return {place: box for place, box in parsed.items() if box is not None}


@dataclass(frozen=True)
class ConsistentSettings(OutputSettings, LoadSettings, SubjectSettings, GenerationSettings):
    """Everything that decides what ``genkit consistent`` makes. The last group comes first in ``--help``."""

    prompt: str | None = option(None, "A picture to make, with its subjects in it; the same as --scene.", prose=True)
    model: str = option("toy-image", MODEL)
