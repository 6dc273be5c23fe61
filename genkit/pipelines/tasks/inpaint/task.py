"""Making a part of a picture anew: a mask says which, a prompt what appears there."""

from __future__ import annotations

from pathlib import Path

from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings


def resolve(settings: InpaintSettings):
    """A request whose input is the picture with its mask, and the part that is worked on."""
    from genkit.pipelines.resolve import Draft, full_path
    from genkit.pipelines.tasks.inpaint.choice import choose, rules_of
    from genkit.pipelines.tasks.inpaint.given import INPUTS, find, find_upscaler, read_given

    files = find(settings)
    draft = Draft(settings, INPUTS)
    draft.settings = choose(draft.settings, draft.model)
    upscaler = find_upscaler(settings.upscaler)
    draft.fill()
    given = read_given(draft.settings, files, draft.model, upscaler)
    draft.notes += given.told
    named = settings.upscaler
    if named is not None and Path(named).is_dir():
        named = full_path(named)
    request = draft.close(
        size=given.size, inputs=given, fingerprints=given.fingerprints(), image=str(files[0].resolve()),
        mask=str(files[1].resolve()), upscaler=named,
    )  # fmt: skip
    if request.attention is not None:
        request.attention.check_beside(draft.model, rules_of(draft.settings), "HD-Painter", " or take --painta 0")
    return request


def run(run) -> Made:
    """Inpaint with the loaded model."""
    from genkit.editing.hd_painter import HDPainterPipeline
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.following import DECODE
    from genkit.pipelines.load import load

    given, settings = run.request.inputs, run.settings

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    def inpaint(*, prompt, generator, negative_prompt=None, eta=0.0, **_):
        return HDPainterPipeline.from_pipe(run.pipeline)(
            given.picture, given.mask, prompt, negative_prompt=negative_prompt or "", generator=generator, eta=eta,
            num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale, painta=settings.painta,
            rasg=settings.rasg, resample=settings.resample, context=given.context, least=given.least,
            longest=given.longest, multiple=given.multiple, upscaler=upscaler, progress=follow,
            max_sequence_length=settings.max_sequence_length,
        )  # fmt: skip

    request = run.request
    # A part that fits the model needs no upscaler; its weights are not read then.
    large = given.upscaler is not None and given.factor > 1
    upscaler = load(given.upscaler, request.dtype, request.device) if large else None
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
    roles={"image": "picture that is repainted", "mask": "mask of what is made anew"},
    usual="toy-image",
)
