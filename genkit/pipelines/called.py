"""Whether an editing task can call a model's denoiser, told before its weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genkit.errors import ArtifactError, UnsupportedError, said
from genkit.families.training.lookup import why_not_called

if TYPE_CHECKING:
    from genkit.pipelines.model import Model


def check_called(model: Model, command: str, inpaints: bool = False) -> None:
    """Refuse a model whose denoiser a task cannot call, or that is told more than a picture and a text.

    Args:
        command: for the message, such as "edit".
        inpaints: whether the task gives mask and masked picture to a denoiser that reads them.

    Raises:
        UnsupportedError: with the reason. ArtifactError: parts that are not of the pipeline's family.
    """
    reason = why_not_called(model.class_name, inpaints)
    if reason is not None:
        raise UnsupportedError(f"genkit {command} cannot drive {model.class_name}: {reason}; see genkit families")
    from genkit.editing.shared.model import record_of
    from genkit.pipelines.skeleton import configured

    try:
        record_of(configured(model), inpaints)
    except AttributeError as error:  # parts of another family than the pipeline's
        raise ArtifactError(
            f"{model.name} cannot be called as {model.class_name}: its configurations do not fit it ({said(error)})"
        ) from error
