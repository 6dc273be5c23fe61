"""DiTCtrl: one long clip from several prompts, without training."""

from genkit.editing.ditctrl.pipeline import DiTCtrlPipeline, StoryboardOutput
from genkit.editing.ditctrl.plan import Plan

__all__ = ["DiTCtrlPipeline", "Plan", "StoryboardOutput"]
