"""Pictures and clips that a run is given beside its prompt."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import WHEN_GIVEN, Settings, flag, option
from genkit.pipelines.text import as_texts
from genkit.schema import Rule

#: The settings that name files, in the order in which the first of them decides the size.
GIVEN = ("image", "source_video", "keyframe", "last_image", "control", "mask", "image_prompt")


@dataclass(frozen=True)
class GivenSettings(Settings):
    """What is given, and how far it is changed. Which of it a model takes: ``genkit models MODEL``."""

    image: tuple[str, ...] = option(
        (), "Picture to start from, to change or to look at, as the model has it. Repeatable where it takes several.",
        group="Given pictures and clips", parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    last_image: str | None = option(
        None, "Picture that the video ends with.", group="Given pictures and clips", stored=WHEN_GIVEN
    )
    keyframe: tuple[str, ...] = option(
        (), "Picture of frame N: N=FILE, -1 is the last one; with @0.8 for its strength. Repeatable.",
        group="Given pictures and clips", parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    source_video: str | None = option(
        None, "Clip to change or to continue.", group="Given pictures and clips", stored=WHEN_GIVEN
    )
    only_new: bool = option(
        False, "Of a clip that is continued, keep the frames alone that are made; else they follow the clip.",
        group="Given pictures and clips", one_way=True, stored=WHEN_GIVEN,
    )  # fmt: skip
    control: tuple[str, ...] = option(
        (), "Picture or clip that says where things are (edges, depth, poses), with @0.8 for its strength; NAME=FILE "
        "for models that take several kinds (pose=, face=). Repeatable.", group="Given pictures and clips",
        parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    controlnet: str | None = option(
        None, "Folder of a ControlNet that reads --control, beside the model.", group="Given pictures and clips",
        stored=WHEN_GIVEN,
    )  # fmt: skip
    image_prompt: tuple[str, ...] = option(
        (), "Picture that says what is wanted, as a prompt does, by the adapter of --ip-adapter. Repeatable.",
        group="Given pictures and clips", parse=as_texts, stored=WHEN_GIVEN,
    )  # fmt: skip
    ip_adapter: str | None = option(
        None, "Image prompt adapter (IP-Adapter, .safetensors; the folder of Flux Redux), with @0.6 for its strength.",
        group="Given pictures and clips", stored=WHEN_GIVEN,
    )  # fmt: skip
    mask: str | None = option(
        None, "Picture or clip that is white where something new is made.", group="Given pictures and clips",
        stored=WHEN_GIVEN,
    )  # fmt: skip
    strength: float | None = option(
        None, "How far what is given is changed, above 0 to 1; the model's own when left out.",
        group="Given pictures and clips", rule=Rule(low=0, high=1), stored=WHEN_GIVEN,
    )  # fmt: skip
    guidance_scale_2: float | None = option(
        None, "Guidance scale of the second expert (low noise) of models with two, such as Wan 2.2; the same as the "
        "first one's when left out.", rule=Rule(low=0, high=10_000), stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.strength is not None and not any(getattr(self, name) for name in GIVEN):
            raise UsageError("--strength says how far what is given is changed; give --image or --source-video")
        if self.controlnet is not None and not self.control:
            raise UsageError("--controlnet needs --control FILE, what it reads")
        if (self.ip_adapter is None) != (not self.image_prompt):
            raise UsageError("--image-prompt and --ip-adapter go together: the adapter reads the picture")
        if self.only_new and self.source_video is None:
            raise UsageError("--only-new goes with a clip that is continued; give --source-video FILE")
        if self.strength == 0:
            raise UsageError("--strength: got 0, allowed: a number above 0 and up to 1")


def given_flags(settings: GivenSettings) -> list[str]:
    """The flags by which settings give something."""
    return [flag(name) for name in GIVEN if getattr(settings, name)]
