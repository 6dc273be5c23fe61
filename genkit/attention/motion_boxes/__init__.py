"""Motion by boxes: ``method``, the boxes of a patch and their encoder in ``track``, what is encoded in ``control``,
boxes at key frames in ``keys``."""

from genkit.attention.motion_boxes.keys import interpolated
from genkit.attention.motion_boxes.method import MotionBoxes
from genkit.attention.motion_boxes.track import BoxTrack

__all__ = ["BoxTrack", "MotionBoxes", "interpolated"]
