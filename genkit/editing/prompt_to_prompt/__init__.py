"""Prompt-to-prompt on an inverted picture."""

from genkit.editing.prompt_to_prompt.pipeline import PromptToPromptPipeline

__all__ = ["PromptToPromptPipeline"]
