"""A video or picture made from pictures and clips beside the prompt: one call of the pipeline that takes them."""

from __future__ import annotations

from genkit.errors import UsageError
from genkit.pipelines.request import flag
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.inputs.settings import given_flags
from genkit.pipelines.tasks.storyboard.settings import asked_by as several


def asked_by(settings: GenerateSettings) -> str | None:
    """Something is given, to a run of one prompt at the model's own size; tasks of others take it themselves."""
    if settings.upscale > 1 or several(settings) is not None:
        return None
    return next(iter(given_flags(settings)), None)


def resolve(settings: GenerateSettings):
    """A request whose inputs are the arguments of the pipeline's call that hold what is given."""
    from genkit.pipelines.length import length_notes
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.inputs.arguments import arguments_of
    from genkit.pipelines.tasks.inputs.files import find, full_places
    from genkit.pipelines.tasks.inputs.parts import check_added, find_added
    from genkit.pipelines.tasks.inputs.plan import SIZES, plan
    from genkit.pipelines.tasks.inputs.serving import check_complete, other_class, served, taken_by

    files, added = find(settings), find_added(settings)
    draft = Draft(settings, model=lambda model: served(model, settings))
    check_complete(draft.model, settings)
    check_added(added, draft.model)
    draft.notes += other_class(draft.model)
    if settings.source_video is not None and taken_by(draft.model.pipeline_class, draft.model.config).continues:
        return continuation(draft, files)
    for name in ("only_new", "tile_frames"):
        if getattr(settings, name):
            raise UsageError(
                f"{flag(name)} is for clips that go on from their last frames; {draft.model.class_name} has its own "
                "way; leave it out"
            )
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


def continuation(draft, files):
    """The request for a clip and what follows it: one shot, whose beginning is the clip's end."""
    from genkit.pipelines.tasks.storyboard.chain import chain_request
    from genkit.pipelines.tasks.storyboard.shots import Shot

    asked = draft.given.num_frames
    draft.given = draft.settings = draft.given.replace(num_frames=None)
    draft.fill()
    return chain_request(draft, files, [Shot(draft.given.prompt)], asked)


def run(run) -> Made:
    """Call the pipeline with what is given."""
    from genkit.pipelines.outputs import collect
    from genkit.pipelines.tasks.storyboard.chain import Chain, run_chain

    if isinstance(run.request.inputs, Chain):
        return run_chain(run)

    inputs, added = run.request.inputs, run.request.added
    if added is not None and added.prior is not None:
        inputs = inputs | run.call(lambda **given: added.prior.prompt(run.prior, given), **inputs)
    with run.patched() as handle:
        output = run.call(run.pipeline, **inputs)
    return collect(run, output, handle)


TASK = Task("inputs", GenerateSettings, resolve, run, asked_by)
