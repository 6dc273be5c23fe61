"""Which pipeline class takes what is given, and what it needs: told from signatures and records, before weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genkit.errors import UsageError, counted
from genkit.families.inputs import BEGINNING, USUAL, Inputs, inputs_of, takes
from genkit.families.lookup import can, facts_of
from genkit.families.sizes import ReadConfig
from genkit.pipelines.kinds import accepted, demanded, kind_of
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.high_resolution.sizes import refusal as second_pass

if TYPE_CHECKING:
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import GenerateSettings


@dataclass(frozen=True)
class Taken:
    """What a pipeline class takes beside the prompt.

    Args:
        arguments: kind of input (a setting) -> the arguments of the call that hold it.
        needs: kinds without which it makes nothing.
        told: its record.
        refused: kinds that the class takes and these weights do not, with the reason.
    """

    arguments: dict[str, tuple[str, ...]]
    needs: tuple[str, ...]
    told: Inputs
    refused: dict[str, str]

    @property
    def continues(self) -> bool:
        """Whether a source clip is continued rather than changed."""
        return self.arguments.get("source_video") == (BEGINNING,)

    def describe(self) -> str:
        """In a few words: ``--image (needed), --strength``."""
        words = [f"{flag(kind)}{' (needed)' if kind in self.needs else ''}" for kind in self.arguments]
        return ", ".join(words) or "nothing beside the prompt"


def taken_by(pipeline_class: type, config: ReadConfig) -> Taken:
    """What a pipeline class takes, from the signature of its call, the record of its family, and the configurations of
    a folder."""
    facts = facts_of(pipeline_class.__name__)
    told = Inputs() if facts is None else inputs_of(facts.inputs, pipeline_class.__name__)
    found = takes(told, accepted(pipeline_class))
    refused = {kind: reason for kind, why in told.unless.items() if (reason := why(config)) is not None}
    found = {kind: names for kind, names in found.items() if kind not in refused}
    needs = told.needs
    if needs is None:
        wanted = demanded(pipeline_class)
        needs = tuple(kind for kind, names in found.items() if any(name in wanted for name in names))
    return Taken(found, needs, told, refused)


def others(model: Model, controlnet: bool = False) -> list[type]:
    """Further classes that run with a model's parts as they are, or with a ControlNet beside them: genkit's own where
    the model is trained for it, then those of Diffusers."""
    import diffusers

    facts = facts_of(model.class_name)
    listed = () if facts is None else facts.others.get(model.class_name, ())
    own = [] if controlnet or not model.sidecar.given_frames else _given_frames(model)
    return own + [
        getattr(diffusers, each.name)
        for each in listed
        if each.controlnet == controlnet and (each.when is None or each.when(model.config))
    ]


def _given_frames(model: Model) -> list[type]:
    """The pipeline for models that are trained to be given frames; it knows Wan's transformer only."""
    from genkit.pipelines.tasks.inputs.given_frames import WanGivenFramesPipeline

    return [WanGivenFramesPipeline] if can("given_frames", model.class_name) else []


def served(model: Model, settings: GenerateSettings) -> Model:
    """The model as the class that takes what settings give.

    Raises:
        UsageError: no class that its parts serve takes it.
    """
    wanted = wanted_by(settings)
    if settings.controlnet is not None:
        classes = others(model, True)
        if not classes:
            raise UsageError(
                f"--controlnet: {model.class_name} is not known to take one beside its folder; leave it out"
            )
    else:
        classes = [model.pipeline_class, *others(model)]
    for each in classes:
        taken = taken_by(each, model.config)
        if set(wanted) <= set(taken.arguments) and set(taken.needs) <= set(wanted):
            return as_class(model, each)
    for each in classes:  # something is missing rather than too much: told by check_complete
        if set(wanted) <= set(taken_by(each, model.config).arguments):
            return as_class(model, each)
    raise UsageError(_refusal(model, classes, wanted))


def wanted_by(settings: GenerateSettings) -> list[str]:
    """The kinds of input that settings give."""
    return [kind for kind in USUAL if getattr(settings, kind)]


def as_class(model: Model, pipeline_class: type) -> Model:
    """The same folder as another pipeline class."""
    if pipeline_class is model.pipeline_class:
        return model
    known = accepted(pipeline_class)
    call = {name: value for name, value in model.sidecar.call.items() if name in known}
    kind = kind_of(pipeline_class)
    return replace(model, pipeline_class=pipeline_class, kind=kind, sidecar=replace(model.sidecar, call=call))


def other_class(model: Model) -> tuple[str, ...]:
    """What to tell of a model that runs as another class than its folder names, one line or none."""
    named = model.config("model_index")["_class_name"]
    if named == model.class_name:
        return ()
    taken = taken_by(model.pipeline_class, model.config).describe()
    return (f"{model.name} runs as {model.class_name}, which takes {taken}",)


def check_complete(model: Model, settings: GenerateSettings) -> None:
    """Refuse a request that lacks what the class needs, or names more than it takes; UsageError."""
    taken, wanted = taken_by(model.pipeline_class, model.config), wanted_by(settings)
    missing = [kind for kind in taken.needs if kind not in wanted]
    if missing:
        raise UsageError(
            f"{model.class_name} needs {' and '.join(map(flag, missing))} too; it takes {taken.describe()}"
        )
    if len(settings.image) > 1 and not taken.told.several:
        raise UsageError(f"--image: got {counted(len(settings.image), 'picture')}, {model.class_name} takes one")


def _refusal(model: Model, classes: list[type], wanted: list[str]) -> str:
    """What a model takes instead."""
    alone = [kind for kind in wanted if not any(kind in taken_by(each, model.config).arguments for each in classes)]
    kinds = [taken_by(each, model.config) for each in classes]
    known = [taken.describe() for taken in kinds if taken.arguments]
    what = flag(alone[0]) if alone else " with ".join(map(flag, wanted))
    reason = next((taken.refused[kind] for taken in kinds for kind in alone if kind in taken.refused), None)
    if reason is not None:
        return f"{what}: {reason}"
    if not known:
        return f"{what}: {model.class_name} starts from text alone; genkit models MODEL tells what a model takes"
    return f"{what}: {model.class_name} does not take it; it takes {', or '.join(dict.fromkeys(known))}"


def overview(model: Model) -> dict[str, str]:
    """What a model takes, by pipeline class, for ``genkit models``."""
    found = {}
    for each in [model.pipeline_class, *others(model), *others(model, True)]:
        taken = taken_by(each, model.config)
        if taken.arguments or each is model.pipeline_class:
            beside = ", --controlnet (needed)" if each in others(model, True) else ""
            found[each.__name__] = f"{taken.describe()}{beside}"
    return found


def every_input(model: Model) -> dict[str, str]:
    """Every kind of input that ``genkit generate`` knows beside the prompt, by its flag, and whether a model takes it:
    ``needed``, ``taken``, ``taken as CLASS`` where another class of Diffusers runs on its parts, or ``not taken`` with
    the reason where one is known."""
    own, beside = taken_by(model.pipeline_class, model.config), others(model, True)
    also = {each.__name__: taken_by(each, model.config) for each in [*others(model), *beside]}
    adding = [each.__name__ for each in beside]
    found = {}
    for kind in USUAL:
        name = next((name for name, taken in also.items() if kind in taken.arguments), None)
        refused = next((taken.refused[kind] for taken in (own, *also.values()) if kind in taken.refused), None)
        if kind in own.arguments:
            found[flag(kind)] = "needed" if kind in own.needs else "taken"
        elif name is not None:
            found[flag(kind)] = f"taken as {name}{', with --controlnet' if name in adding else ''}"
        else:
            found[flag(kind)] = "not taken" if refused is None else f"not taken: {refused}"
    found["--controlnet"] = f"taken as {adding[0]}" if adding else "not taken"
    adapter = hasattr(model.pipeline_class, "load_ip_adapter")
    found["--ip-adapter"] = "taken, with --image-prompt" if adapter else "not taken"
    experts = "transformer_2" in model.parts and "guidance_scale_2" in model.accepted
    found["--guidance-scale-2"] = "taken" if experts else "not taken: it has no second expert"
    larger = [name for name in (model.class_name, *also) if second_pass(name) is None]
    if model.class_name in larger:
        found["--upscale"] = "taken"
    else:
        found["--upscale"] = f"taken as {larger[0]}" if larger else "not taken"
    return found
