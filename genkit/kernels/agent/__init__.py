"""Agent attention: a few agent tokens read all keys, then every query reads the agents."""

from genkit.kernels.agent.api import agent_attention

__all__ = ["agent_attention"]
