"""HD-Painter: prompt-faithful inpainting without training (Manukyan et al. 2023, arXiv:2312.14091)."""

from genkit.editing.hd_painter.pipeline import HDPainterPipeline

__all__ = ["HDPainterPipeline"]
