"""IR-Diffusion: several subjects that stay themselves over several pictures, by isolation and reposition attention."""

from genkit.editing.ir_diffusion.pipeline import ConsistentOutput, IRDiffusionPipeline

__all__ = ["ConsistentOutput", "IRDiffusionPipeline"]
