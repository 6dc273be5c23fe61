"""What a run with a given sound or video takes beside the common settings."""

from __future__ import annotations

from dataclasses import dataclass

from genkit.errors import UsageError
from genkit.pipelines.request import Settings, option


@dataclass(frozen=True)
class AudioVideoSettings(Settings):
    """The half that is given."""

    audio: str | None = option(
        None, "Sound file that a video is made for (models of video and sound).", group="Audio and video"
    )
    video: str | None = option(
        None, "Video file that a sound is made for (models of video and sound).", group="Audio and video"
    )

    def check(self) -> None:
        super().check()
        if self.audio is not None and self.video is not None:
            raise UsageError("--audio and --video exclude each other: one is given, the other made; leave one out")
