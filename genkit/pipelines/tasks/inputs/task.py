"""A video or picture made from pictures and clips beside the prompt: one call of the pipeline that takes them."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.inputs.settings import given_flags


def asked_by(settings: GenerateSettings) -> str | None:
    """Something is given, to a run at the model's own size; the task of larger ones takes it itself."""
    return None if settings.upscale > 1 else next(iter(given_flags(settings)), None)


def resolve(settings: GenerateSettings):
    """A request whose inputs are the arguments of the pipeline's call that hold what is given."""
    from genkit.pipelines.length import length_notes
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.inputs.arguments import arguments_of
    from genkit.pipelines.tasks.inputs.files import find, full_places
    from genkit.pipelines.tasks.inputs.parts import check_added, find_added
    from genkit.pipelines.tasks.inputs.plan import SIZES, plan
    from genkit.pipelines.tasks.inputs.serving import check_complete, other_class, served

    files, added = find(settings), find_added(settings)
    draft = Draft(settings, model=lambda model: served(model, settings))
    check_complete(draft.model, settings)
    check_added(added, draft.model)
    draft.notes += other_class(draft.model)
    draft.fill(own=SIZES)
    planned = plan(files, draft)
    inputs = arguments_of(planned, draft)
    draft.notes += length_notes(
        draft.model, planned.frames, draft.attention is not None, bool(draft.loras or draft.mixing)
    )
    return draft.close(
        steps=planned.steps, frames=planned.frames, inputs=inputs, added=added,
        fingerprints=files.fingerprints() | added.fingerprints(), **full_places(files), **added.places(),
    )  # fmt: skip


def run(run) -> Made:
    """Call the pipeline with what is given."""
    from genkit.pipelines.outputs import collect

    inputs, added = run.request.inputs, run.request.added
    if added is not None and added.prior is not None:
        inputs = inputs | run.call(lambda **given: added.prior.prompt(run.prior, given), **inputs)
    with run.patched() as handle:
        output = run.call(run.pipeline, **inputs)
    return collect(run, output, handle)


TASK = Task("inputs", GenerateSettings, resolve, run, asked_by)
