"""Editing a picture or clip: what it shows and what it shall show, by one of several methods."""

from __future__ import annotations

from pathlib import Path

from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.edit.settings import EditSettings, is_clip

LEFT = ("steps", "guidance_scale")


def resolve(settings: EditSettings):
    """A request whose input is the file, at a size that the model takes."""
    from dataclasses import replace

    from genkit.errors import UnsupportedError
    from genkit.media import format_of
    from genkit.pipelines.kinds import AUDIO_VIDEO, VIDEO
    from genkit.pipelines.prompts import read_prompts
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.edit.choice import choose, rules_of
    from genkit.pipelines.tasks.edit.given import check_held, find, read_given, stored_prompt
    from genkit.pipelines.tasks.edit.words import without_idle

    path = find(settings.image)
    told = []
    if settings.model is None:
        settings = settings.replace(model=named(settings.image))
    if settings.source_prompt is None and settings.method != "img2img":
        found = stored_prompt(path)
        if found is not None:
            settings = settings.replace(source_prompt=found)
            told.append(f"the source prompt is the one the picture was made with: {found}")
    draft = Draft(settings)
    if draft.model.kind is AUDIO_VIDEO:
        raise UnsupportedError(
            f"{draft.model.class_name} makes video and sound together, which genkit edit cannot change"
        )
    draft.settings, why = choose(draft.settings, draft.model)
    told += why
    draft.settings, idle = without_idle(draft.settings)
    told += idle
    draft.fill(LEFT)
    moving = settings.output is not None and format_of(settings.output) in ("mp4", "gif", "webp")
    given = read_given(path, draft.model, draft.model.kind is VIDEO, moving)
    check(draft.settings)
    if draft.model.kind is VIDEO:
        check_held(draft.settings, given)
    draft.notes += [*told, *given.told]
    height, width, frames = given.size
    request = draft.close(
        size=(height, width), frames=len(given.frames), inputs=given,
        fingerprints={"image_fingerprint": given.fingerprint()}, image=str(path.resolve()),
    )  # fmt: skip
    if request.attention is not None:
        method = f"--method {request.settings.method}"
        request.attention.check_beside(draft.model, rules_of(request.settings), method, ", or take another method")
    source = request.settings.source_prompt
    if source is None:
        return request
    asked = request.settings.replace(prompt=source, negative_prompt=None)
    read = read_prompts(
        request.tokenizers, asked, draft.model.sidecar.limits.get("max_prompt_tokens"), name="source prompt"
    )
    if read.words:
        line = "weights in the source prompt have no effect: they act on what the picture shall show"
        request = replace(request, notes=(*request.notes, line))
    if read.prompt == request.prompts.prompt and not request.prompts.words:
        line = "the prompt says what the source prompt says, so nothing asks for a change; give another one"
        request = replace(request, notes=(*request.notes, line))
    given = replace(given, source_prompt=read.prompt or "")
    return replace(request, inputs=given, notes=(*request.notes, *read.told))


def named(image: str | None) -> str:
    """The shipped model for a picture or clip, where none is named."""
    return "toy-video" if image is not None and is_clip(Path(image)) else "toy-image"


def check(settings: EditSettings) -> None:
    """Refuse words that the prompt does not have; UsageError."""
    from genkit.pipelines.tasks.edit.words import check_words

    check_words(settings)


def run(run) -> Made:
    """Edit with the loaded model."""
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.following import DECODE
    from genkit.pipelines.tasks.edit.methods import edit

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    given = run.request.inputs
    with run.patched() as handle:
        output = run.call(edit(run.pipeline, run.settings, given, follow, run.rules))
    return Made(given.canvas.crop(output.frames), given.audio, given.sample_rate, report_of(handle), given.fps)


TASK = Task(
    "edit",
    EditSettings,
    resolve,
    run,
    command="edit",
    help="Change a picture or clip: say what it shows and what it shall show.",
    argument="image",
    roles={"image": "picture or clip that is changed"},
    usual="toy-image (toy-video for a clip)",
    check=check,
    weighs=True,
    named=named,
)
