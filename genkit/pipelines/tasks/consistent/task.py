"""The same subjects in several pictures, one output each."""

from __future__ import annotations

from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.consistent.settings import ConsistentSettings

SIZE = ("height", "width")


def resolve(settings: ConsistentSettings):
    """A request for one scene after the other; all scenes are checked at once."""
    from dataclasses import replace

    from genkit.editing.hd_painter.place import native_side
    from genkit.editing.ir_diffusion.cast import Cast
    from genkit.errors import UsageError
    from genkit.pipelines.prompts import read_prompts
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.style.given import check_model

    if not settings.subject:
        raise UsageError('no subject: say who appears in all pictures, --subject "a red circle"')
    if settings.prompt is None:
        raise UsageError('no scene: say what the pictures show, --scene "a red circle on a blue background"')
    if settings.asked("dropout") and not settings.reposition:
        raise UsageError(
            "--dropout says how much of a portrait is read, which --no-reposition switches off; leave one out"
        )
    scenes = tuple(dict.fromkeys((settings.prompt, *settings.scene)))
    cast = Cast.of(settings.subject, scenes, settings.keyword, settings.boxes)
    # A scene's record is its own: it repeats that scene.
    draft = Draft(settings.replace(scene=()))
    check_model(draft.model, "consistent")
    draft.fill()
    side = native_side(draft.model.config)
    draft.set(**{name: side for name in SIZE if side is not None and getattr(draft.settings, name) is None})
    draft.notes += cast.told()
    request = draft.close()
    subjects: list[str] = []
    told: list[str] = []
    for text in settings.subject:
        asked = request.settings.replace(prompt=text, negative_prompt=None)
        limit = draft.model.sidecar.limits.get("max_prompt_tokens")
        read = read_prompts(request.tokenizers, asked, limit, name="subject")
        subjects.append(read.prompt)
        told += read.told
    return replace(request, inputs=tuple(subjects), notes=(*request.notes, *told))


def check(settings: ConsistentSettings) -> None:
    """Refuse a scene that does not name its subjects; UsageError."""
    from genkit.editing.ir_diffusion.cast import Cast

    Cast.of(settings.subject, [settings.prompt], settings.keyword, settings.boxes)


def run(run) -> Made:
    """Make one scene with the loaded model."""
    from genkit.editing.ir_diffusion import IRDiffusionPipeline
    from genkit.pipelines.following import DECODE

    settings = run.settings

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    # A model that tells no size is given the pipeline's own.
    size = {name: getattr(settings, name) for name in SIZE if getattr(settings, name) is not None}

    def make(*, prompt, generator, negative_prompt=None, eta=None, **_):
        return IRDiffusionPipeline.from_pipe(run.pipeline)(
            list(run.request.inputs), [prompt], keywords=settings.keyword, boxes=settings.boxes,
            **size, negative_prompt=negative_prompt or "", eta=eta,
            num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale, isolation=settings.isolation,
            reposition=settings.reposition, dropout=settings.dropout, text_share=settings.text_share,
            start=settings.start, max_sequence_length=settings.max_sequence_length, generator=generator,
            progress=follow,
        )  # fmt: skip

    return Made(run.call(make).frames)


TASK = Task(
    "consistent",
    ConsistentSettings,
    resolve,
    run,
    command="consistent",
    help="Make several pictures in which the same subjects appear and stay themselves.",
    usual="toy-image",
    several="scene",
    check=check,
)
