"""Cross-modal context attention: ``method``, who sees whom in ``windows``, who listens to whom in ``route``."""

from genkit.attention.cross_modal_context.method import ContextTokens, CrossModalContext, context_part
from genkit.attention.cross_modal_context.route import TASKS, ContextRoute, draw_tasks

__all__ = ["TASKS", "ContextRoute", "ContextTokens", "CrossModalContext", "context_part", "draw_tasks"]
