"""One clip of several prompts in a row."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task
from genkit.pipelines.tasks.storyboard.settings import DITCTRL, asked_by


def resolve(settings: GenerateSettings):
    """A request whose input is the storyboard: prompts as the model reads them, and the tiles."""
    from dataclasses import replace

    from genkit.errors import UsageError
    from genkit.pipelines.resolve import Draft
    from genkit.pipelines.tasks.inputs.files import find
    from genkit.pipelines.tasks.inputs.serving import other_class
    from genkit.pipelines.tasks.storyboard.board import read_shots, shots_of
    from genkit.pipelines.tasks.storyboard.chain import Way, chain_request

    shots = shots_of(settings)
    texts, first = tuple(shot.text for shot in shots), shots[0].prompt
    if settings.prompt not in (None, first):
        raise UsageError(f"a prompt of its own and {asked_by(settings)} exclude each other; leave one out")
    # A storyboard's record holds its shots, so that it repeats without the file.
    asked = settings.num_frames if settings.asked("num_frames") else None
    files, way = find(settings), Way(settings)
    draft = Draft(settings.replace(prompt=first, shots=texts, storyboard=None, num_frames=None), model=way.take)
    if way.chained:
        draft.notes += other_class(draft.model)
        draft.fill()
        request = chain_request(draft, files, shots, asked)
        chain, told = read_shots(request.inputs, request)
        return replace(request, inputs=chain, notes=(*request.notes, *told))
    return tiles(draft, shots, asked)


def tiles(draft, shots, asked):
    """The request of DiTCtrl's tiles.

    Args:
        draft: of the settings. shots: of the storyboard. asked: frames that the user wants; None = as they come.
    """
    from dataclasses import replace

    from genkit.pipelines.tasks.storyboard.board import Board, read_shots

    if draft.settings.sharing != "none":
        draft.settings.check_free("the sharing of the shots", ", or take --sharing none")
    draft.fill()
    board = Board.of(draft, shots, asked)
    draft.set(**board.settings(), shots_by=DITCTRL)
    draft.notes += board.told()
    request = draft.close(frames=board.tile_frames, inputs=board)
    board, told = read_shots(board, request)
    board.check_layers(request)
    return replace(request, inputs=board, notes=(*request.notes, *told))


def run(run) -> Made:
    """Make the clip with the loaded model."""
    from genkit.pipelines.tasks.storyboard.chain import Chain, run_chain

    if isinstance(run.request.inputs, Chain):
        return run_chain(run)
    return run_tiles(run)


def run_tiles(run) -> Made:
    """DiTCtrl's clip."""
    from genkit.editing.ditctrl import DiTCtrlPipeline
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.following import DECODE
    from genkit.pipelines.text import shares

    settings, board = run.settings, run.request.inputs

    def follow(done: int, total: int, latents) -> None:
        run.step(done, total, latents)
        if done == total and run.progress is not None:
            run.progress(DECODE, 0, 1)

    def make(*, generator, negative_prompt=None, **_):
        return DiTCtrlPipeline.from_pipe(run.pipeline)(
            board.prompts, board.frames, negative_prompt=negative_prompt or "", height=settings.height,
            width=settings.width, tile_frames=board.tile_frames, overlap=settings.tile_overlap,
            transitions=settings.transitions, num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale, sharing=settings.sharing, words=settings.sharing_words,
            sharing_layers=settings.sharing_layers, sharing_steps=shares(settings.sharing_steps, "--sharing-steps"),
            pairs=not settings.single_pass, max_sequence_length=settings.max_sequence_length, generator=generator,
            progress=follow,
        )  # fmt: skip

    with run.patched() as handle:
        made = run.call(make)
    return Made(made.frames, report=report_of(handle))


TASK = Task("storyboard", GenerateSettings, resolve, run, asked_by)
