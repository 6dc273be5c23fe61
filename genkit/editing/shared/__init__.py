"""What every editing method needs of a model: latents, texts, answers, noise levels, guidance; its result and base."""

from genkit.editing.shared.branches import Branches
from genkit.editing.shared.levels import levels_of
from genkit.editing.shared.model import Conditions, EditModel
from genkit.editing.shared.pipeline import EditOutput, EditPipeline

__all__ = ["Branches", "Conditions", "EditModel", "EditOutput", "EditPipeline", "levels_of"]
