"""What a run takes that is asked for in free words."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError, counted, explain
from genkit.pipelines.request import NEVER, Settings, flag, option
from genkit.pipelines.text import as_texts

GROUP = "Instruction"
#: Characters of an instruction at most.
MOST = 20_000


@dataclass(frozen=True)
class InstructionSettings(Settings):
    """The instruction and who reads it. What it is read as is stored, not itself."""

    instruction: str | None = option(
        None, "What is wanted in free words, such as \"make the girl in photo.png wave, end on last.jpg\": read as the "
        "options that are left open. What is written as an option stays. See --explain.", group=GROUP, stored=NEVER,
        prose=True,
    )  # fmt: skip
    file: tuple[str, ...] = option(
        (), "Picture, clip, sound or track that --instruction is about, where it does not name it. Repeatable.",
        group=GROUP, parse=as_texts, stored=NEVER,
    )  # fmt: skip
    instruction_model: str | None = option(
        None, "Language model that reads --instruction: folder of transformers, or hub id that the cache holds. By "
        "rules alone when left out: phrases about files, lengths, sizes and seeds become options, other words the "
        "prompt.", group=GROUP,
        stored=NEVER,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.instruction is None:
            for name in ("file", "instruction_model"):
                if getattr(self, name):
                    raise UsageError(f'{flag(name)} goes with --instruction "TEXT", what is wanted in words')
            return
        if not self.instruction.strip():
            raise UsageError(explain("--instruction", self.instruction, "a text that says what is wanted"))
        if len(self.instruction) > MOST:
            raise UsageError(
                f"--instruction: got {counted(len(self.instruction), 'character')}, allowed: {MOST} or fewer"
            )
