"""A video, a picture, or a video with sound from a text: one call of the pipeline, patched where that is asked for."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def resolve(settings: GenerateSettings):
    """A request for one call of the pipeline."""
    from genkit.pipelines.resolve import Draft

    draft = Draft(settings)
    draft.fill()
    return with_length(draft)


def with_length(draft, **more):
    """The finished request of a filled draft; a clip longer than those of training is told. ``more`` as of its
    ``close``."""
    from genkit.pipelines.length import length_notes

    draft.notes += length_notes(
        draft.model, draft.settings.num_frames, draft.attention is not None, bool(draft.loras or draft.mixing)
    )
    return draft.close(**more)


def run(run) -> Made:
    """Call the pipeline."""
    from genkit.pipelines.outputs import collect

    with run.patched() as handle:
        output = run.call(run.pipeline)
    return collect(run, output, handle)


TASK = Task(
    "text_to_x",
    GenerateSettings,
    resolve,
    run,
    help="Make a video, an image, or a video with sound from a prompt.",
)
