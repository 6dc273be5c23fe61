"""One door for pictures of a subject: ``--subject`` becomes the setting by which the model takes such a picture.

Models differ in how they show what a picture shows: some look at it by their own call (Kontext, VACE, edit models),
some through an adapter (IP-Adapter, Redux), some through reference attention. What runs is told and stored by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import can
from genkit.media.read_image import check_image
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.references.settings import ReferenceSettings
from genkit.reading.strength import path_and_strength

if TYPE_CHECKING:
    from genkit.pipelines.model import Model

#: The method of attention that follows pictures, and its trained weights beside a model.
METHOD, WEIGHTS = "reference", "reference.safetensors"


def through_door(settings: Any) -> tuple[Any, tuple[str, ...]]:
    """Settings with their subjects in the form that the model takes, and what to tell of it, one line or none.

    Raises:
        UsageError: a subject beside something that has no room for one, or without the adapter that reads it.
        UnsupportedError: the model has no form of it.
    """
    subjects = settings.subject if _files(settings) else ()
    if not subjects:
        return settings, ()
    _check_free(settings)
    strengths = []
    for text in subjects:
        path, strength = path_and_strength(text, "--subject", low=0)
        check_image(path, "--subject")
        strengths.append(strength)
    model = _model(settings)
    if settings.ip_adapter is not None:
        return _as(settings, "image_prompt", model, strengths, f"read by {settings.ip_adapter}")
    looking = looks(model)
    if settings.attention == METHOD:
        return _as(settings, "reference", model, strengths, "by reference attention")
    if looking is not None:
        return _as(settings, "image", model, strengths, f"which {looking} looks at")
    if can("reference_pictures", model.class_name):
        if settings.attention not in (None, "none"):
            raise UsageError(
                f"--subject with --attention {settings.attention}: {model.class_name} shows subjects by --attention "
                f"{METHOD}; leave one out"
            )
        weights = model.folder / WEIGHTS
        args = {"weights": str(weights)} if weights.is_file() else {}
        how = "with its trained weights" if args else "without training, so that style and colours come along"
        chosen = settings.replace(attention=METHOD, attention_args={**args, **settings.attention_args})
        return _as(chosen, "reference", model, strengths, f"by reference attention, {how}")
    if hasattr(model.pipeline_class, "load_ip_adapter"):
        raise UsageError(
            f"--subject: {model.class_name} looks at pictures through an adapter; give --ip-adapter FILE.safetensors"
        )
    raise UnsupportedError(
        f"--subject: {model.class_name} has no form of it: its call takes no picture to look at, it takes no image "
        "prompt adapter, and reference attention is not made for it; genkit families --tasks lists the models of ref2x"
    )


def looks(model: Model) -> str | None:
    """The class that looks at pictures with a model's parts; None where none does."""
    from genkit.pipelines.tasks.inputs.serving import others, taken_by

    for kind in (model.pipeline_class, *others(model)):
        taken = taken_by(kind, model.config)
        if taken.told.looks and "image" in taken.arguments:
            return kind.__name__
    return None


def _as(settings: Any, name: str, model: Model, strengths: list[float], how: str) -> tuple[Any, tuple[str, ...]]:
    """The subjects as values of another setting."""
    if name == "image" and any(strength != 1 for strength in strengths):
        raise UsageError(f"--subject ...@{strengths[0]:g}: {model.class_name} takes no strength there; leave it out")
    given = getattr(settings, name)
    changed = settings.replace(**{name: (*given, *settings.subject), "subject": ()})
    return changed, (f"--subject is given as {flag(name)}, {how}",)


def _files(settings: Any) -> bool:
    """Whether a subject of these settings is a file; other commands have subjects in words."""
    return isinstance(settings, ReferenceSettings)


def _check_free(settings: Any) -> None:
    """Refuse what has no room for a subject, by the name that the user wrote."""
    several = "--prompt given several times" if settings.shots else "--storyboard" if settings.storyboard else None
    taken = several or ("--stream" if settings.stream else "--upscale" if settings.upscale > 1 else None)
    if taken is not None:
        raise UsageError(f"--subject and {taken} exclude each other; leave one out")


def _model(settings: Any) -> Model:
    from genkit.models import locate
    from genkit.pipelines.model import Model

    return Model.at(locate(settings.model, files=True), settings.model, settings.parts_from)
