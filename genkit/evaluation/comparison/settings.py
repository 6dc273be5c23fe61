"""What ``genkit compare`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError
from genkit.evaluation.comparison.variants import DENSE
from genkit.pipelines.request import NEVER, WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import GenerationSettings, LoadSettings, SamplerSettings, WordSettings
from genkit.pipelines.tasks.inputs.settings import GivenSettings
from genkit.pipelines.text import as_pairs_text, as_texts
from genkit.schema import Rule

OUTPUT = "comparison.html"


@dataclass(frozen=True)
class VariantSettings(Settings):
    """What is compared with what."""

    prompts: tuple[str, ...] = option(
        (), "The prompts, in the place of --prompt. Repeatable.", parse=as_texts, repeats="prompt", prose=True
    )
    attention: tuple[str, ...] = option(
        (), "Attention method to compare: NAME[:key=value,...][@steps=4:,layers=1:], or NAME@recommended. Repeatable.",
        group="Compare", parse=as_texts,
    )  # fmt: skip
    schedule: str | None = option(
        None, "Where the methods of --attention act that name no schedule of their own: steps=4:,layers=1:, or "
        "recommended.", group="Compare", parse=as_pairs_text,
    )  # fmt: skip
    backend: str = option("auto", "Who executes the methods: auto, or a name from genkit doctor.", group="Compare")
    recipe: tuple[str, ...] = option(
        (), "Recipe to compare, by name or YAML file. Repeatable.", group="Compare", parse=as_texts
    )
    cache: tuple[str, ...] = option(
        (), "Cache of Diffusers to compare: first_block:threshold=0.1. Repeatable.", group="Compare", parse=as_texts
    )
    variant: tuple[str, ...] = option(
        (), "Any other variant: 'NAME: setting=value; setting=value' with settings of genkit generate (attention, "
        "schedule, lora, fast, steps, dtype, ...) and cache. Repeatable.", group="Compare", parse=as_texts,
    )  # fmt: skip
    variants: dict[str, Any] = option(
        dict, "In --config: a mapping from names to settings, as in --variant.", group="Compare", stored=WHEN_GIVEN
    )
    baseline: str = option(
        DENSE, "Which variant the others are compared with; dense is the model's own attention.", group="Compare"
    )
    perceptual: bool | None = option(
        None, "ST-LPIPS and VMAF too (genkit[metrics]); where installed unless --no-perceptual says otherwise.",
        group="Compare", stored=WHEN_GIVEN,
    )  # fmt: skip
    warm_up: bool = option(True, "Run a few steps of every variant before anything is timed.", group="Compare")
    played: int = option(
        6, "How many prompts and seeds the page can play; the numbers are of all.", group="Output",
        rule=Rule(low=0, high=100), stored=NEVER,
    )  # fmt: skip
    output: str | None = option(
        None, f"The page, *.html ({OUTPUT}); beside it .json, .png and a folder of outputs.", group="Output",
        stored=NEVER,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.schedule is not None and not self.attention:
            raise UsageError("--schedule is for methods of --attention; there is none")


@dataclass(frozen=True)
class CompareSettings(VariantSettings, LoadSettings, GivenSettings, SamplerSettings, WordSettings, GenerationSettings):
    """Everything that decides what ``genkit compare`` makes. The last group comes first in ``--help``."""


#: Settings that are the comparison's own; all others are shared by its variants.
OWN_FIELDS = frozenset(VariantSettings.field_names())
