"""FlowEdit: editing with flow models along the difference of two velocities."""

from genkit.editing.flow_edit.pipeline import FlowEditPipeline

__all__ = ["FlowEditPipeline"]
