"""genkit's sparse attention as a node of ComfyUI."""

from .nodes import SparseAttention

NODE_CLASS_MAPPINGS = {"GenkitSparseAttention": SparseAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"GenkitSparseAttention": "Sparse Attention (genkit)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
