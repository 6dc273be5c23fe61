"""A video larger than the model was trained on: a run at its own size, and a patched second pass at the larger one."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def asked_by(settings: GenerateSettings) -> str | None:
    """A larger size is wanted."""
    return "--upscale" if settings.upscale > 1 else None


def resolve(settings: GenerateSettings):
    """A request in which nothing of the second pass is left open."""
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.high_resolution.sizes import check_model, kept_steps, open_values, target_size, windows

    draft = Draft(settings)
    check_model(draft.model)
    draft.fill()
    draft.check_sizes()
    draft.set(**open_values(draft.settings, draft.model.sidecar.defaults))
    filled = draft.settings
    if draft.attention is not None:
        draft.attention = windows(draft.attention, filled, draft.model)
    steps = kept_steps(filled.steps, filled.upscale_strength)
    size = target_size(filled.height, filled.width, filled.upscale, draft.model.rule.multiple)
    return draft.close(size=size, steps=steps)


def run(run) -> Made:
    """The run at the model's size and the patched second pass."""
    from functools import partial

    from genkit.pipelines.attention import plain
    from genkit.pipelines.outputs import to_frames
    from genkit.pipelines.tasks.high_resolution.second_pass import high_resolution

    settings, attention = run.settings, run.request.attention
    second = {} if attention is None else {"schedule": attention.schedule, "backend": attention.backend}
    output = run.call(
        partial(
            high_resolution, run.pipeline, upscale=settings.upscale, strength=settings.upscale_strength,
            flow_shift=settings.upscale_shift, progress=run.progress, method=attention and attention.method, **second,
        ),
        callback_on_step_end=None, output_type=None,
    )  # fmt: skip
    report = None if output.report is None else plain(output.report.to_dict())
    return Made(to_frames(output, run.request.model.kind), report=report)


TASK = Task("high_resolution", GenerateSettings, resolve, run, asked_by)
