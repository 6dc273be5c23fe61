"""Reading and writing images, video and sound, with the settings that made them inside the file and beside it."""

from __future__ import annotations

from genkit.media.files import Media, read_media, read_settings, write_media
from genkit.media.formats import check_output, format_of, numbered, sidecar_of
from genkit.media.fragments import FragmentedVideo, ReaderGone
from genkit.media.images import enlarge, resized
from genkit.media.read_image import read_image
from genkit.media.read_video import Video, probe_video, read_chosen, read_mp4
from genkit.media.sound import AAC_RATES, read_sound, resample
from genkit.media.video import exact_fps, write_mp4

__all__ = [
    "AAC_RATES",
    "FragmentedVideo",
    "Media",
    "ReaderGone",
    "Video",
    "check_output",
    "enlarge",
    "exact_fps",
    "format_of",
    "numbered",
    "probe_video",
    "read_chosen",
    "read_image",
    "read_media",
    "read_mp4",
    "read_settings",
    "read_sound",
    "resample",
    "resized",
    "sidecar_of",
    "write_media",
    "write_mp4",
]
