"""The prompts of a tuning: some to choose by, others to measure what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.evaluation.tuning.store import digest

#: Models whose prompts the toy world draws and whose clips its judge reads.
JUDGED = ("toy-video",)
#: Held-out runs have seeds of their own, this far from those of the calibration.
APART = 10_000


@dataclass(frozen=True)
class Case:
    """One run: what is asked for, its seed, and the scene that the judge compares with (None without)."""

    prompt: str
    seed: int
    scene: Any = None

    @property
    def name(self) -> str:
        """What results of the run are kept under."""
        return digest(self.prompt, self.seed)


@dataclass(frozen=True)
class Cases:
    """Runs to choose by, and runs to measure the choice with; no prompt is in both."""

    calibration: tuple[Case, ...]
    held_out: tuple[Case, ...]

    @classmethod
    def of(
        cls, model: str, file: Path | None, calibration: int, held_out: int, seed: int, judged: bool = False
    ) -> Cases:
        """Read or draw the prompts.

        Args:
            model: its name. file: one prompt a line: the first are for calibration; None = of the toy world.
            calibration, held_out: how many of each. seed: of the draw and of the first run.
            judged: whether the judge is needed.

        Raises:
            UsageError: too few prompts, one that is there twice, or a model without prompts of its own.
            UnsupportedError: a model without a judge.
        """
        if judged and model not in JUDGED:
            raise UnsupportedError(
                f"there is no judge for {model}, only for {', '.join(JUDGED)}; budget psnr, ssim or st_lpips instead"
            )
        if judged and file is not None:
            raise UsageError(
                "the judge knows what is asked for only of the toy world's own prompts; leave --prompts out"
            )
        if file is None and model not in JUDGED:
            raise UsageError(f"give --prompts FILE: prompts are drawn by themselves only for {', '.join(JUDGED)}")
        wanted = calibration + held_out
        if file is None:
            drawn = _drawn(wanted, seed)
        else:
            from genkit.pipelines.prompts import read_prompt_file

            texts = read_prompt_file(file)
            if len(set(texts)) < len(texts):
                twice = next(text for text in texts if texts.count(text) > 1)
                raise UsageError(f"{file} has a prompt twice, {twice!r}: those measured on must not be those chosen by")
            if len(texts) < wanted:
                raise UsageError(
                    explain(
                        f"prompts in {file}",
                        len(texts),
                        f"at least {wanted}",
                        f"{calibration} to choose by and {held_out} held out; --calibration and --held-out change that",
                    )  # fmt: skip
                )
            drawn = [(None, text) for text in texts[:wanted]]
        cases = [
            Case(text, seed + number + (APART if number >= calibration else 0), scene)
            for number, (scene, text) in enumerate(drawn)
        ]
        return cls(tuple(cases[:calibration]), tuple(cases[calibration:]))

    def texts(self) -> dict[str, Sequence[str]]:
        """The prompts, for reports."""
        return {"calibration": [c.prompt for c in self.calibration], "held out": [c.prompt for c in self.held_out]}


def _drawn(count: int, seed: int) -> list[tuple[Any, str]]:
    """Scenes of the toy world with captions that differ from each other."""
    from genkit.evaluation.toy import draw_prompts

    found: dict[str, Any] = {}
    draws = 2 * count
    while len(found) < count:
        for scene, text in draw_prompts("train", draws, seed):
            found.setdefault(text, scene)
        draws *= 2
    return [(scene, text) for text, scene in found.items()][:count]
