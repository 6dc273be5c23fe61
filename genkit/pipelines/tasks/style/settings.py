"""What ``genkit style`` takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, explain
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import (
    MODEL,
    AttentionSettings,
    InputSettings,
    LoadSettings,
    OutputSettings,
    PromptSettings,
    ReadSettings,
)
from genkit.schema import Rule


@dataclass(frozen=True)
class MannerSettings(Settings):
    """Whose manner is taken, and how much of it."""

    style: str | None = option(
        None, "Picture whose manner is taken: its colours, textures and light, not its things.", group="Style"
    )
    keep: float = option(
        0.75, "How far the content leads where the style is looked up, 0 to 1: more keeps outlines.", group="Style",
        rule=Rule(low=0, high=1),
    )  # fmt: skip
    strength: float = option(
        0.6, "How far the start goes to the style's mean and spread, 0 to 1: more takes more of its colours.",
        group="Style", rule=Rule(low=0, high=1),
    )  # fmt: skip
    temperature: float = option(
        2.25, "Sharpness of the attention to the style; 1 is plain attention.", group="Style",
        rule=Rule(low=0.01, high=100),
    )  # fmt: skip
    source_prompt: str | None = option(
        None, "What the picture shows, for finding its noise; the prompt when left out.", group="Style", prose=True
    )
    style_prompt: str = option("", "What the style's picture shows, likewise.", group="Style", prose=True)
    style_layers: str | None = option(
        None, "Regular expression of the attention layers that look the style up; the decoder's last ones when left "
        "out.", group="Style", stored=WHEN_GIVEN,
    )  # fmt: skip
    resample: int = option(
        3, "How often each step of the way to the noise is corrected; 0 is plain DDIM inversion. Costs as many calls "
        "more.", group="Style", rule=Rule(low=0, high=50),
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.style_layers is not None:
            try:
                re.compile(self.style_layers)
            except re.error as error:
                allowed = f"a regular expression such as up_blocks; this one is none: {error}"
                raise UsageError(explain("--style-layers", self.style_layers, allowed)) from error


@dataclass(frozen=True)
class StyleSettings(
    OutputSettings, LoadSettings, AttentionSettings, MannerSettings, ReadSettings, PromptSettings, InputSettings
):
    """Everything that decides what ``genkit style`` makes: nothing is drawn at random, so there is no seed.

    The last group comes first in ``--help``.
    """

    prompt: str | None = option("", "What the result shows. Mostly not needed.", prose=True)
    model: str = option("toy-image", MODEL)

    @classmethod
    def unknown(cls, origin: str, values: Mapping[str, Any]) -> str:
        """See :meth:`Settings.unknown`."""
        told = cls.counterpart(next(iter(values)))
        return f"{origin}: {told}" if told else super().unknown(origin, values)

    @classmethod
    def counterpart(cls, name: str) -> str:
        """See :meth:`Settings.counterpart`: what the commands that draw at random have."""
        plain = name.lstrip("-").replace("-", "_")
        if plain not in ("seed", "num_videos"):
            return ""
        return f"genkit style draws nothing at random, so there is no {plain.replace('_', '-')}; leave it out"
