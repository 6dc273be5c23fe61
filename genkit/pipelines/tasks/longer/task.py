"""One call of the pipeline that begins with noise shared along time."""

from __future__ import annotations

from genkit.errors import counted
from genkit.pipelines.noise import INDEPENDENT
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def asked_by(settings: GenerateSettings) -> str | None:
    """Noise of another kind than the pipeline's own is wanted."""
    return None if settings.noise == INDEPENDENT else "--noise"


def resolve(settings: GenerateSettings):
    """A request whose input is the number of latent frames with noise of their own."""
    from genkit.errors import UsageError
    from genkit.pipelines.length import trained_length
    from genkit.pipelines.noise import time_axis
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.text_to_x import with_length

    draft = Draft(settings)
    time_axis(draft.model.class_name)
    draft.fill()
    trained, rule = trained_length(draft.model), draft.model.rule
    if trained is None:
        raise UsageError(
            f"--noise {settings.noise}: nobody tells how long the clips were that {draft.model.name} was trained on; "
            f"give its genkit.json defaults.num_frames"
        )
    if (draft.settings.num_frames or 1) <= trained.frames:
        raise UsageError(
            f"--noise {settings.noise} shares noise beyond {counted(trained.frames, 'frame')}, which "
            f"{draft.model.name} was "
            f"trained on; this clip has {draft.settings.num_frames}: leave it out, or ask for more --num-frames"
        )
    every = 1 if rule is None else rule.frames_multiple
    return with_length(draft, inputs=(trained.frames - 1) // every + 1)


def run(run) -> Made:
    """Call the pipeline."""
    from genkit.pipelines.noise import shared_noise
    from genkit.pipelines.outputs import collect

    settings = run.settings
    with run.patched() as handle, shared_noise(run.pipeline, run.request.inputs, settings.noise, settings.seed):
        output = run.call(run.pipeline)
    return collect(run, output, handle)


TASK = Task("longer", GenerateSettings, resolve, run, asked_by)
