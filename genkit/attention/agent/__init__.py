"""Agent attention: settings and calls in ``method``, trained form in ``weights``."""

from genkit.attention.agent.method import Agent, Cells, downsample
from genkit.attention.agent.weights import AgentWeights

__all__ = ["Agent", "AgentWeights", "Cells", "downsample"]
