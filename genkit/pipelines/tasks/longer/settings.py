"""What a clip takes that is longer than those of training."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.pipelines.noise import INDEPENDENT, NOISES
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.schema import Rule


@dataclass(frozen=True)
class LongerSettings(Settings):
    """How the initial noise of a long clip is drawn."""

    noise: str = option(
        INDEPENDENT, "Initial noise of a clip longer than those of training: independent, shuffled (later windows of "
        "frames take that of the first one in another order, FreeNoise) or repeated.", rule=Rule(choices=NOISES),
        stored=WHEN_GIVEN,
    )  # fmt: skip
