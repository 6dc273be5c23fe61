"""ViMAEdit: editing with grounded masks, noise that depends on the place, and vision guidance."""

from genkit.editing.vimaedit.pipeline import ViMAEditPipeline

__all__ = ["ViMAEditPipeline"]
