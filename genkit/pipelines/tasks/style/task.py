"""A picture in the manner of another one: content, style, and how much of each."""

from __future__ import annotations

from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.style.settings import StyleSettings

LEFT = ("steps", "guidance_scale")
#: Steps of a model whose ``genkit.json`` names none, as published.
STEPS = 40


def resolve(settings: StyleSettings):
    """A request whose inputs are the two pictures."""
    from dataclasses import replace

    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.style.given import check_model, find, read_given, read_texts, rules_of

    content, style = find(settings)
    draft = Draft(settings)
    check_model(draft.model)
    settings.check_free("the style", ", or give it other layers than the style's by --schedule layers=")
    sidecar = draft.model.sidecar.defaults
    draft.set(
        steps=sidecar.get("steps", STEPS) if settings.steps is None else settings.steps,
        guidance_scale=1.0 if settings.guidance_scale is None else settings.guidance_scale,
    )
    draft.fill(LEFT)
    given = read_given(content, style, draft.model)
    draft.notes += given.told
    request = draft.close(
        size=given.canvas.size, inputs=given, fingerprints=given.fingerprints(), image=str(content.resolve()),
        style=str(style.resolve()),
    )  # fmt: skip
    rules = rules_of(settings, draft.model)
    if request.attention is not None:
        request.attention.check_beside(draft.model, rules, "the style", ", or give it other layers by --schedule")
    texts, told = read_texts(request)
    return replace(request, inputs=replace(given, **texts), notes=(*request.notes, *told))


def run(run) -> Made:
    """Take over the style with the loaded model."""
    from genkit.editing.attenst import AttenSTPipeline
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.following import DECODE

    given, settings = run.request.inputs, run.settings

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    def restyle(*, prompt, generator, negative_prompt=None, **_):
        return AttenSTPipeline.from_pipe(run.pipeline)(
            given.canvas.padded, given.style, prompt=prompt, source_prompt=given.source_prompt,
            style_prompt=given.style_prompt, negative_prompt=negative_prompt or "", keep=settings.keep,
            strength=settings.strength, temperature=settings.temperature, layers=settings.style_layers,
            resample=settings.resample, num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale,
            max_sequence_length=settings.max_sequence_length, progress=follow,
        )  # fmt: skip

    with run.patched() as handle:
        output = run.call(restyle)
    return Made(given.canvas.crop(output.frames), report=report_of(handle))


TASK = Task(
    "style",
    StyleSettings,
    resolve,
    run,
    command="style",
    help="Give a picture the manner of another one: its colours and textures on the same things.",
    argument="image",
    roles={"image": "picture that keeps its things", "style": "picture whose manner is taken"},
    usual="toy-image",
)
