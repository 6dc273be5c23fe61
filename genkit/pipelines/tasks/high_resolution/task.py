"""A video larger than the model was trained on: a run at its own size, and a patched second pass at the larger one."""

from __future__ import annotations

from dataclasses import replace

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def asked_by(settings: GenerateSettings) -> str | None:
    """A larger size is wanted."""
    return "--upscale" if settings.upscale > 1 else None


def resolve(settings: GenerateSettings):
    """A request in which nothing of the second pass is left open; its inputs are the arguments of both passes that hold
    what is given."""
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.high_resolution.sizes import check_model, kept_steps, open_values, target_size, windows
    from genkit.pipelines.tasks.inputs.arguments import arguments_of
    from genkit.pipelines.tasks.inputs.files import find, full_places
    from genkit.pipelines.tasks.inputs.parts import check_added, find_added
    from genkit.pipelines.tasks.inputs.plan import SIZES, plan
    from genkit.pipelines.tasks.inputs.serving import check_complete, other_class, served
    from genkit.pipelines.tasks.inputs.settings import given_flags

    given = bool(given_flags(settings))
    files, added = find(settings), find_added(settings)
    draft = Draft(settings, model=(lambda model: served(model, settings)) if given else None)
    check_model(draft.model)
    if given:
        check_complete(draft.model, settings)
        check_added(added, draft.model)
        draft.notes += other_class(draft.model)
    draft.fill(own=SIZES if given else ())
    planned = plan(files, draft) if given else None
    draft.check_sizes()
    draft.set(**open_values(draft.settings, draft.model.sidecar.defaults))
    filled = draft.settings
    if draft.attention is not None:
        draft.attention = windows(draft.attention, filled, draft.model)
    steps = kept_steps(filled.steps, filled.upscale_strength)
    size = target_size(filled.height, filled.width, filled.upscale, draft.model.rule.multiple)
    if planned is None:
        return draft.close(size=size, steps=steps)
    # What is given is brought to each size from its file: the second pass sees more of it.
    inputs = tuple(arguments_of(replace(planned, size=each), draft) for each in (planned.size, size))
    return draft.close(
        size=size, steps=steps, frames=planned.frames, inputs=inputs, added=added,
        fingerprints=files.fingerprints() | added.fingerprints(), **full_places(files), **added.places(),
    )  # fmt: skip


def run(run) -> Made:
    """The run at the model's size and the patched second pass."""
    from functools import partial

    from genkit.pipelines.attention import plain
    from genkit.pipelines.outputs import to_frames
    from genkit.pipelines.tasks.high_resolution.second_pass import high_resolution

    settings, attention = run.settings, run.request.attention
    own, large = run.request.inputs or ({}, {})
    second = {} if attention is None else {"schedule": attention.schedule, "backend": attention.backend}
    output = run.call(
        partial(
            high_resolution, run.pipeline, upscale=settings.upscale, strength=settings.upscale_strength,
            flow_shift=settings.upscale_shift, progress=run.progress, method=attention and attention.method,
            large=large, **second,
        ),
        callback_on_step_end=None, output_type=None, **own,
    )  # fmt: skip
    report = None if output.report is None else plain(output.report.to_dict())
    return Made(to_frames(output, run.request.model.kind), report=report)


TASK = Task("high_resolution", GenerateSettings, resolve, run, asked_by)
