"""Making a part of a picture anew: a mask says which, a prompt what appears there."""

from __future__ import annotations

from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings


def resolve(settings: InpaintSettings):
    """A request whose input is the picture with its mask, and the part that is worked on."""
    from genkit.errors import UnsupportedError
    from genkit.pipelines.kinds import IMAGE
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.inpaint.given import INPUTS, find, read_given

    files = find(settings)
    draft = Draft(settings, INPUTS)
    if draft.model.kind is not IMAGE:
        raise UnsupportedError(
            f"{draft.model.name} makes videos, and genkit inpaint works on pictures; take a model of pictures, such as "
            "--model toy-image"
        )
    draft.fill()
    given = read_given(draft.settings, files, draft.model)
    draft.notes += given.told
    return draft.close(
        size=given.size, inputs=given, fingerprints=given.fingerprints(), image=str(files[0].resolve()),
        mask=str(files[1].resolve()),
    )  # fmt: skip


def run(run) -> Made:
    """Inpaint with the loaded model."""
    from genkit.editing.hd_painter import HDPainterPipeline
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.following import DECODE

    given, settings = run.request.inputs, run.settings

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    def inpaint(*, prompt, generator, negative_prompt=None, eta=0.0, **_):
        return HDPainterPipeline.from_pipe(run.pipeline)(
            given.picture, given.mask, prompt, negative_prompt=negative_prompt or "", generator=generator, eta=eta,
            num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale, context=settings.context,
            least=given.least, longest=given.longest, multiple=given.multiple,
            max_sequence_length=settings.max_sequence_length, progress=follow,
        )  # fmt: skip

    with run.patched() as handle:
        output = run.call(inpaint)
    return Made(output.frames, report=report_of(handle))


TASK = Task(
    "inpaint",
    InpaintSettings,
    resolve,
    run,
    command="inpaint",
    help="Make a part of a picture anew; the rest stays as it is, bit for bit.",
    argument="image",
    usual="toy-image",
)
