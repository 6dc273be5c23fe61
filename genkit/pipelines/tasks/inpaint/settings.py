"""What ``genkit inpaint`` takes."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import WHEN_GIVEN, Settings, option
from genkit.pipelines.settings import (
    MODEL,
    AttentionSettings,
    DrawSettings,
    InputSettings,
    LoadSettings,
    OutputSettings,
    PromptSettings,
)
from genkit.reading.masks import CHANNELS, WIDEST
from genkit.schema import Rule


@dataclass(frozen=True)
class MaskSettings(Settings):
    """Which part is made anew, and what of the picture the model sees."""

    mask: str | None = option(
        None, "Picture of the same size, white where the picture is made anew; of one with transparent parts, what is "
        "not transparent.", group="Mask",
    )  # fmt: skip
    mask_channel: str = option(
        "auto", "What of the mask's file counts: auto, brightness or alpha.", group="Mask",
        rule=Rule(choices=CHANNELS), stored=WHEN_GIVEN,
    )  # fmt: skip
    mask_invert: bool = option(
        False, "Make anew what the mask does not mark.", group="Mask", one_way=True, stored=WHEN_GIVEN
    )
    mask_grow: int = option(
        0, "Enlarge the mask by so many pixels; a negative number shrinks it.", group="Mask",
        rule=Rule(low=-WIDEST, high=WIDEST), stored=WHEN_GIVEN,
    )  # fmt: skip
    feather: int = option(
        0, "Blend old and new over so many pixels, from the mask's border inwards; outside nothing changes.",
        group="Mask", rule=Rule(low=0, high=WIDEST), stored=WHEN_GIVEN,
    )  # fmt: skip
    context: int | None = option(
        None, "Pixels around the mask that the model sees; when left out an eighth of the mask's longer side, a half "
        "for models made for inpainting. With a large number it sees the whole picture.", group="Mask",
        rule=Rule(low=0, high=65_536),
    )  # fmt: skip
    longest: int | None = option(
        None, "Longer side, in pixels, of what the model works on; a larger part is scaled down and back, which is "
        "said. The model's own limit when left out.", group="Mask", rule=Rule(low=16, high=65_536),
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.mask is None:
            for flag, given in (("--mask-invert", self.mask_invert), ("--mask-grow", self.mask_grow != 0)):
                if given:
                    raise UsageError(f"{flag} needs --mask FILE")


@dataclass(frozen=True)
class PainterSettings(Settings):
    """How the model is made to heed the prompt, and what draws large parts."""

    painta: float | None = option(
        None, "Share of the steps, from the first on, in which what is made reads the rest of the picture only as far "
        "as that agrees with the prompt (PAIntA); 0 = never.", group="HD-Painter", rule=Rule(low=0, high=1),
    )  # fmt: skip
    rasg: float | None = option(
        None, "How far each step is moved so that the prompt's attention covers the mask (RASG), as a share of a "
        "step's noise, about 0.01; 0 = not. Costs two to three times the time; for UNets only.", group="HD-Painter",
        rule=Rule(low=0, high=1),
    )  # fmt: skip
    resample: int | None = option(
        None, "How often each step is taken, with fresh noise in between, so that what is made and what is there grow "
        "together (RePaint); 2 when left out, at twice the time, and 1 for models made for inpainting.",
        group="HD-Painter", rule=Rule(low=1, high=100), before=1,
    )  # fmt: skip
    upscaler: str | None = option(
        None, "Folder or hub id of a Stable Diffusion x4 upscaler: draws parts that are larger than --longest, which "
        "are made at a quarter of their size.", group="HD-Painter",
    )  # fmt: skip


@dataclass(frozen=True)
class InpaintSettings(
    OutputSettings,
    LoadSettings,
    AttentionSettings,
    PainterSettings,
    MaskSettings,
    DrawSettings,
    PromptSettings,
    InputSettings,
):
    """Everything that decides what ``genkit inpaint`` makes. The last group comes first in ``--help``."""

    prompt: str | None = option(
        None, 'What appears in the mask, best with its background: "a red circle on a black background". With "" the '
        "model decides.", prose=True,
    )  # fmt: skip
    model: str = option("toy-image", MODEL)
