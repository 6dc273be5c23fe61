"""A run whose object goes along boxes: the motion module on the patch, with pictures of a subject or without."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def asked_by(settings: GenerateSettings) -> str | None:
    """A track is given."""
    return None if settings.boxes is None else "--boxes"


def resolve(settings: GenerateSettings):
    """A request whose inputs are the boxes of every frame, and the subject's pictures."""
    from genkit.pipelines.tasks.boxes.given import prepare

    return prepare(settings)


def run(run) -> Made:
    """Tell the patch its boxes, record the pictures, and call the pipeline."""
    from genkit.pipelines.outputs import collect
    from genkit.pipelines.tasks.boxes.given import tell

    with run.patched() as handle:
        tell(handle, run)
        output = run.call(run.pipeline)
    return collect(run, output, handle)


TASK = Task("boxes", GenerateSettings, resolve, run, asked_by)
