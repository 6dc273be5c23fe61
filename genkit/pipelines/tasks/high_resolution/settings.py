"""What a run with a second pass takes beside the common settings."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import Settings, option
from genkit.schema import Rule


@dataclass(frozen=True)
class HighResolutionSettings(Settings):
    """How much larger, and how much is made anew."""

    upscale: float = option(
        1.0, "Denoise a second time at 2, 1.5, ... times the size; goes with --attention sliding_window (Wan and "
        "LTX-Video, from text or a picture).",
        group="High resolution", rule=Rule(low=1, high=8),
    )  # fmt: skip
    upscale_strength: float | None = option(
        None, "Share of the steps of the second pass, 0.7 when left out.", group="High resolution",
        rule=Rule(low=0, high=1),
    )  # fmt: skip
    upscale_shift: float | None = option(
        None, "Timestep shift of the second pass, 9 when left out; larger starts from more noise.",
        group="High resolution", rule=Rule(low=0.01, high=100),
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.upscale == 1:
            for flag, given in (("strength", self.upscale_strength), ("shift", self.upscale_shift)):
                if given is not None:
                    raise UsageError(f"--upscale-{flag} needs --upscale above 1")
