"""A video for a given sound, or a sound for a given video."""

from __future__ import annotations

from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import Made, Task


def asked_by(settings: GenerateSettings) -> str | None:
    """One half is given."""
    return "--audio" if settings.audio is not None else "--video" if settings.video is not None else None


def resolve(settings: GenerateSettings):
    """A request whose input is the given half, fitted to the run."""
    from fractions import Fraction

    from genkit.pipelines.resolve import Draft, full_path
    from genkit.pipelines.tasks.audio_video.given import longest, read_given, usual_frames

    draft = Draft(settings)
    given = read_given(asked_by(settings), settings.audio or settings.video, draft.model, longest(settings))
    draft.fill()
    if settings.num_frames is None:
        most = usual_frames(draft.model, draft.settings.num_frames)
        draft.set(num_frames=given.num_frames(Fraction(draft.settings.fps), draft.model.rule, most))
    filled = draft.settings
    draft.check_sizes()
    given = given.fitted(filled.num_frames, Fraction(filled.fps), filled.height, filled.width)
    draft.notes += given.told
    return draft.close(
        inputs=given, fingerprints={"given_fingerprint": given.fingerprint()},
        audio=full_path(settings.audio), video=full_path(settings.video),
    )  # fmt: skip


def run(run) -> Made:
    """Make the half that is not given; what is given comes back untouched."""
    from functools import partial

    from genkit.families.sound_features import features_of
    from genkit.pipelines.attention import report_of
    from genkit.pipelines.outputs import fit_sound, to_frames, to_sound
    from genkit.pipelines.tasks.audio_video.complete import complete

    given, kind = run.request.inputs, run.request.model.kind
    features = features_of(run.pipeline, run.request.model.sidecar.sound)
    with run.patched() as handle:
        output = run.call(partial(complete, run.pipeline, given, features))
    report = report_of(handle)
    if given.sound is not None:
        return Made(to_frames(output, kind), given.sound, given.rate, report)
    sound, rate = to_sound(output, run.pipeline, kind)
    return Made(given.frames, fit_sound(sound, rate, len(given.frames), run.fps), rate, report)


TASK = Task("audio_video", GenerateSettings, resolve, run, asked_by)
