"""What the attention of a real run looks like, measured on samples of queries while the model computes densely."""

from genkit.evaluation.inspection.look import Look
from genkit.evaluation.inspection.result import AttentionLook, MethodLook, SiteLook, StepLook

__all__ = ["AttentionLook", "Look", "MethodLook", "SiteLook", "StepLook"]
