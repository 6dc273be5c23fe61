"""AttenST: the manner of one picture on the content of another, by inversion, attention and statistics."""

from genkit.editing.attenst.pipeline import AttenSTPipeline

__all__ = ["AttenSTPipeline"]
