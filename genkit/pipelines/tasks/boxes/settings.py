"""What a clip takes whose object follows boxes."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import WHEN_GIVEN, Settings, option


@dataclass(frozen=True)
class BoxSettings(Settings):
    """The track, and the trained module that follows it."""

    boxes: str | None = option(
        None, "JSON or YAML file with the boxes that the object goes along: units (shares or pixels) and boxes, each "
        "with frame (from 0) and box [left, top, right, bottom].", group="Boxes", stored=WHEN_GIVEN,
    )  # fmt: skip
    boxes_weights: str | None = option(
        None, "Trained weights of the motion module (genkit train weights motion_boxes); those in the model's folder "
        "when left out.", group="Boxes", stored=WHEN_GIVEN,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if self.boxes_weights is not None and self.boxes is None:
            raise UsageError("--boxes-weights needs --boxes FILE, the track to follow")
