"""Shots that go on from each other: every one is made from the last frames of the one before."""

from genkit.editing.shot_chain.pipeline import ShotChainOutput, ShotChainPipeline
from genkit.editing.shot_chain.plan import ChainPlan

__all__ = ["ChainPlan", "ShotChainOutput", "ShotChainPipeline"]
