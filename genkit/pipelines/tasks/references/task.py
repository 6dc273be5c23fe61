"""A run that follows pictures: they are recorded on the patch before the pipeline is called."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task

METHOD = "reference"


def asked_by(settings: GenerateSettings) -> str | None:
    """The method records what it follows; with another origin its references come from elsewhere. Where there are boxes
    to follow too, that task does both."""
    if settings.boxes is not None:
        return None
    recorded = settings.attention_args.get("origin", "recorded") == "recorded"
    return "--reference" if settings.attention == METHOD and (settings.reference or recorded) else None


def resolve(settings: GenerateSettings):
    """A request whose inputs are the pictures, fitted to the model."""
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.references.pictures import fingerprints, full_places, parse_references, read_pictures

    parsed, box = parse_references(settings)
    draft = Draft(settings)
    draft.fill()
    inputs = read_pictures(parsed, box, draft.settings, draft.model)
    draft.notes += [line for picture in inputs.pictures for line in picture.told]
    if not inputs.one_call:
        # Where the halves of guidance are calls of their own, only the prompt's reads the references.
        draft.attention = draft.attention.on_branches("cond")
    return draft.close(inputs=inputs, fingerprints=fingerprints(inputs), reference=full_places(parsed))


def run(run) -> Made:
    """Record the pictures and call the pipeline."""
    from genkit.pipelines.outputs import collect
    from genkit.pipelines.tasks.references.pictures import record

    with run.patched() as handle:
        record(handle, run)
        output = run.call(run.pipeline)
    return collect(run, output, handle)


TASK = Task("references", GenerateSettings, resolve, run, asked_by)
