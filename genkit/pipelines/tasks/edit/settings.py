"""What ``genkit edit`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from genkit.errors import UsageError
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import (
    MODEL,
    AttentionSettings,
    DrawSettings,
    InputSettings,
    LoadSettings,
    OutputSettings,
    WordSettings,
)
from genkit.pipelines.text import as_texts
from genkit.schema import Rule

INFEDIT, FLOWEDIT, P2P, IMG2IMG, VIMAEDIT = "infedit", "flowedit", "p2p", "img2img", "vimaedit"
METHODS = (INFEDIT, FLOWEDIT, P2P, IMG2IMG, VIMAEDIT)
CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
#: Kinds of change with settings of their own.
PRESETS = ("colour", "material", "shape", "background", "add", "remove")
#: Value of ``words``: those of the prompt that the source prompt does not have; or no limit to where the change goes.
AUTO, NONE = "auto", "none"
#: Values of ``new_words``; see :class:`genkit.editing.infedit.InfEditPipeline`.
PAIRED, FREE = "paired", "free"


def is_clip(path: Path) -> bool:
    """Whether a file is read as a clip, by its name."""
    return path.suffix.lower() in CLIPS


@dataclass(frozen=True)
class ChangeSettings(Settings):
    """How a picture is changed."""

    source_prompt: str | None = option(
        None, "What the picture shows; read from a picture that genkit made when left out.", group="Edit", prose=True
    )
    method: str | None = option(
        None, "infedit, flowedit (flow models, without control of attention), p2p (inversion and prompt-to-prompt), "
        "img2img, or vimaedit (finds its own region). Left out: infedit; with --preset shape and a flow model "
        "flowedit, which is told.",
        group="Edit",
        rule=Rule(choices=METHODS),
    )  # fmt: skip
    preset: str | None = option(
        None, "Kind of change: colour, material, shape, background, add, remove. Sets --keep and --keep-maps where "
        "they are left open, of infedit also guidance, --new-words and --source-words; shape also --method, see "
        "there.", group="Edit", rule=Rule(choices=PRESETS), stored=WHEN_GIVEN,
    )  # fmt: skip
    keep: float | None = option(
        None, "Share of the steps in which the attention of the source rules, 0 to 1: more keeps outlines and places.",
        group="Edit", rule=Rule(low=0, high=1),
    )  # fmt: skip
    keep_maps: float | None = option(
        None, "The same of where the words that both prompts have act; as --keep with infedit when left out.",
        group="Edit", rule=Rule(low=0, high=1),
    )  # fmt: skip
    new_words: str | None = option(
        None, "Whether a new word acts where the word that it stands for does in the source, as long as --keep-maps "
        "says (paired, the usual), or where the model likes (free); infedit.", group="Edit",
        rule=Rule(choices=(PAIRED, FREE)), stored=WHEN_GIVEN,
    )  # fmt: skip
    settle: float | None = option(
        None, "Share of the steps, from the first on, in which the large colours settle, for another background: after "
        "it guidance is off, only then words act where they do in the source, and --words and --keep-words limit the "
        "change after twice as long. infedit, 0 unless said.",
        group="Edit", rule=Rule(low=0, high=1), stored=WHEN_GIVEN,
    )  # fmt: skip
    words: tuple[str, ...] = option(
        (), "Change only where these words of the prompt act: a word or several, repeatable; 'auto' = the words the "
        "source prompt does not have, 'none' = everywhere.", group="Edit", parse=as_texts, prose=True,
    )  # fmt: skip
    source_words: tuple[str, ...] = option(
        (), "Change only where these words of the source prompt act in the picture: the thing that goes; 'auto' = the "
        "words the prompt does not have (of --preset remove), 'none' = everywhere; infedit.", group="Edit",
        parse=as_texts, stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    keep_words: tuple[str, ...] = option(
        (), "Where these words of both prompts act the picture stays: a word or several, repeatable; the things on it "
        "when the background changes; infedit.", group="Edit", parse=as_texts, stored=WHEN_GIVEN, prose=True,
    )  # fmt: skip
    strength: float | None = option(
        None, "Share of the steps that are run, above 0 and up to 1: less stays closer to the picture.", group="Edit",
        rule=Rule(low=0, high=1),
    )  # fmt: skip
    source_guidance_scale: float | None = option(
        None, "Guidance of the source prompt; 1 for none.", group="Edit", rule=Rule(low=0, high=10_000)
    )

    def check(self) -> None:
        super().check()
        for flag, words in (("--words", self.words), ("--source-words", self.source_words)):
            if len(words) > 1 and {AUTO, NONE} & set(words):
                raise UsageError(f"{flag} {AUTO} and {NONE} stand alone; leave the other words out")
        if self.method in (FLOWEDIT, IMG2IMG):
            kept = self.keep is not None or self.keep_maps is not None
            for flag, given in (("--keep", kept), ("--words", bool(self.words))):
                if given and self.words != (NONE,):
                    raise UsageError(
                        f"{flag} controls attention, which {self.method} leaves alone; take infedit or p2p"
                    )
        if self.method == IMG2IMG and self.source_guidance_scale is not None:
            raise UsageError(f"--source-guidance-scale: {IMG2IMG} reads no source prompt; leave it out")
        if self.method in (P2P, VIMAEDIT) and self.strength is not None:
            raise UsageError(f"--strength: {self.method} runs all steps; say with --keep how much stays")


@dataclass(frozen=True)
class EditSettings(
    OutputSettings, LoadSettings, AttentionSettings, ChangeSettings, WordSettings, DrawSettings, InputSettings
):
    """Everything that decides what ``genkit edit`` makes. The last group comes first in ``--help``."""

    weighed_role: ClassVar[str | None] = "target"

    model: str | None = option(  # type: ignore[assignment]
        None, f"{MODEL} toy-image for a picture and toy-video for a clip when left out."
    )
