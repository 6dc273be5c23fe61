"""InfEdit: virtual inversion and unified attention control."""

from genkit.editing.infedit.pipeline import InfEditPipeline

__all__ = ["InfEditPipeline"]
