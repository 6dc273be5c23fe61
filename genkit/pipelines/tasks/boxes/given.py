"""What ``genkit generate --boxes`` gives: boxes of every frame, the module that follows them, a subject's pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted
from genkit.families.lookup import able, can
from genkit.reading import file_digest
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch

    from genkit.attention.motion_boxes import MotionBoxes
    from genkit.pipelines.model import Model
    from genkit.pipelines.resolve import Request
    from genkit.pipelines.session import Run
    from genkit.pipelines.settings import GenerateSettings
    from genkit.pipelines.tasks.references.pictures import Inputs

#: The method that follows boxes, its trained weights beside a model, and its name in the families' records.
METHOD, WEIGHTS, TASK = "motion_boxes", "motion_boxes.safetensors", "boxes"
_REFERENCE = "reference"


@dataclass(frozen=True)
class Given:
    """What a run follows.

    Args:
        boxes: (frames, 4) as shares of the canvas.
        subject: the pictures of a subject; None without.
    """

    boxes: torch.Tensor
    subject: Inputs | None


def prepare(settings: GenerateSettings) -> Request:
    """The request of settings with a track.

    Raises:
        UsageError, ArtifactError: a track, a subject or weights that are wrong or do not fit the model.
        UnsupportedError: a model that nothing follows boxes on.
    """
    from genkit.pipelines.resolve import Draft, full_path
    from genkit.pipelines.tasks.boxes.track import read_track
    from genkit.pipelines.tasks.references import pictures
    from genkit.pipelines.tasks.text_to_x import with_length

    track = read_track(str(settings.boxes))
    subject = settings.attention == _REFERENCE
    if settings.attention == METHOD:
        raise UsageError(f"--boxes puts {METHOD} on the model by itself: leave --attention {METHOD} out")
    if settings.reference_box is not None:
        raise UsageError("--reference-box and --boxes exclude each other: the references follow the track")
    parsed = pictures.parse_references(settings)[0] if subject else []
    draft = Draft(settings)
    method = _method(settings, draft.model)
    draft.fill()
    filled, model = draft.settings, draft.model
    boxes = track.frames(filled.num_frames or 1, filled.height, filled.width)
    shown = pictures.read_pictures(parsed, None, filled, model) if subject else None
    places: dict[str, Any] = {"boxes": full_path(settings.boxes), "boxes_weights": full_path(method.weights)}
    prints: dict[str, Any] = {"boxes_fingerprint": file_digest(Path(str(places["boxes"])))[:16]}
    if shown is not None:
        draft.notes += [line for picture in shown.pictures for line in picture.told]
        assert draft.attention is not None, "a subject is shown by reference attention"
        draft.attention = draft.attention.on_branches("cond")
        places["reference"] = pictures.full_places(parsed)
        prints |= pictures.fingerprints(shown)
    draft.attention = with_module(draft.attention, method)
    check_fit_of(method, model)
    weights = WEIGHTS if settings.boxes_weights is None else place(settings.boxes_weights)
    draft.notes.append(f"boxes: {counted(len(track.boxes), 'key frame')}, followed by {weights}")
    return with_length(draft, inputs=Given(boxes, shown), fingerprints=prints, **places)


def with_module(attention: Any, method: MotionBoxes) -> Any:
    """Attention of a run with the motion module beside it, in both halves of guidance: in the prompt's alone guidance
    would enlarge the module's term, and outlines suffer."""
    from genkit.patching.parts import Part
    from genkit.patching.schedule import Schedule
    from genkit.pipelines.attention import Attention

    everywhere = Part(method, Schedule())  # not where the schedule of the method beside it says
    return (Attention(None) if attention is None else attention).with_beside(everywhere)


def _method(settings: GenerateSettings, model: Model) -> MotionBoxes:
    """The trained module for a model."""
    from genkit.attention import registry
    from genkit.models.check import check_safetensors

    if not can(TASK, model.class_name):
        raise UnsupportedError(f"--boxes: got {model.class_name}, allowed: {', '.join(able(TASK))}")
    own = settings.boxes_weights is None
    path = model.folder / WEIGHTS if own else Path(str(settings.boxes_weights)).expanduser()
    if not path.is_file():
        if not own:
            raise ArtifactError(f"--boxes-weights: {place(path)} does not exist")
        raise UsageError(
            f"--boxes: {model.name} has no trained motion module; train one with genkit train weights {METHOD} "
            f"--model {model.name}, then give it by --boxes-weights FILE"
        )
    if not own:
        check_safetensors(path, "--boxes-weights")
    method: Any = registry.trained(METHOD, path.resolve())
    return method


def check_fit_of(method: MotionBoxes, model: Model) -> None:
    """Refuse weights that were trained for other layers, from headers alone; ArtifactError."""
    from dataclasses import replace

    from genkit.attention.weights import check_fit
    from genkit.models.check import check_safetensors
    from genkit.patching import patch

    header = check_safetensors(Path(str(method.weights)))
    stored = {name: tuple(told.shape) for name, told in header.items() if name.startswith(f"{METHOD}/")}
    with patch(model.outline, replace(method, weights=None)) as handle:
        wanted = {name: tuple(table.shape) for name, table in handle.weights.named_weights().items()}
    remedy = f"Train for {model.name}: genkit train weights {METHOD} --model {model.name}"
    check_fit(f"--boxes: {place(str(method.weights))}", stored, wanted, remedy)


def tell(handle: Any, run: Run) -> None:
    """Set the boxes of a patch; with a subject record its pictures, which apply inside the boxes above all."""
    from genkit.attention.motion_boxes import BoxTrack

    given = run.request.inputs
    BoxTrack.of(handle.cache).set(given.boxes)
    if given.subject is not None:
        from genkit.attention.reference.store import References
        from genkit.pipelines.tasks.references.pictures import record_all

        record_all(handle, run, given.subject)
        References.of(handle.cache).follow([given.boxes.tolist()], run.settings.height, run.settings.width)
