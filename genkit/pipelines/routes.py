"""Which kind of work a request is, told by rules: what is given and in which role, the pipeline that runs, and why.

The same rules make the table of tasks and families; nothing is said there that a request would refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from genkit.errors import counted
from genkit.families.inputs import BEGINNING, Inputs, inputs_of, takes
from genkit.families.lookup import can, facts_of, records
from genkit.pipelines.kinds import AUDIO_VIDEO, IMAGE, VIDEO, Kind, accepted, demanded, kind_of, makes_nothing
from genkit.pipelines.request import flag
from genkit.pipelines.tasks.storyboard.chain import chains
from genkit.pipelines.tasks.storyboard.settings import CHAIN

if TYPE_CHECKING:
    from genkit.families.base import Family
    from genkit.pipelines.resolve import Request

#: Task -> what it is, in the order of the table.
TASKS = {
    "t2i": "picture from text", "t2v": "video from text", "t2av": "video with sound from text",
    "i2i": "picture from a picture", "i2v": "video from a first frame", "flf2v": "video from first and last frame",
    "keyframes": "video from frames at any place", "v2v": "video from a video",
    "continuation": "video that goes on from a clip", "inpaint": "a part made anew",
    "control": "follows edges, depth or poses", "ref2x": "shows what pictures show",
    "boxes": "an object goes along boxes", "multi_prompt": "several prompts, one clip",
    "upscale": "second pass at a larger size",
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """One thing that a request is given.

    Args:
        flag: by which. role: what it is for. path: the file.
    """

    flag: str
    role: str
    path: str


@dataclass(frozen=True)
class Route:
    """The decision about a request.

    Args:
        task: one of :data:`TASKS`, or the name of the command for others. what: the same in words.
        inputs: what is given.
        prompts: how many.
        model: by its name. pipeline: class that runs, ``runs``: what of genkit drives it.
        because: the rules that decided, one line each.
        reading: how an instruction in free words was read, as data; None without one. read: the same in lines.
    """

    task: str
    what: str
    inputs: tuple[Given, ...]
    prompts: int
    model: str
    pipeline: str
    runs: str
    because: tuple[str, ...]
    reading: dict[str, Any] | None = None
    read: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self)
        del values["read"]
        return values

    def lines(self) -> list[str]:
        """For people."""
        told = [f"task: {self.task} ({self.what})", f"model: {self.model}"]
        told += [f"pipeline: {self.pipeline}, by {self.runs}"]
        told += [f"input: {each.flag} {each.path} is the {each.role}" for each in self.inputs]
        return [*told, *self.read, *(f"because: {line}" for line in self.because)]


def route_of(request: Request) -> Route:
    """The decision about a request that was resolved."""
    settings, model, own = request.settings, request.model, request.task
    if own.command != "generate":
        return _of_command(request)
    inputs = tuple(_given(settings, model.class_name, model.kind))
    count = len(settings.shots) or 1
    task, why = _task(settings, inputs, model.kind, count)
    because = [why]
    if own.asked_by is not None:
        because.append(f"{own.asked_by(settings)} asks for {own.name.replace('_', ' ')}")
    if settings.shots_by == CHAIN:
        because.append(f"chained shots: {model.class_name} takes the last frame of the shot before as its first")
    elif settings.shots_by is not None:
        because.append("blended tiles (DiTCtrl): asked for, or the model takes no first frame")
    named = model.config("model_index")["_class_name"]
    if named == model.class_name:
        because.append(f"{named} is the class that the model's folder names")
    else:
        because.append(f"the folder names {named}, which does not take this; {model.class_name} runs on its weights")
    reading = request.reading
    data, read = (None, ()) if reading is None else (reading.to_dict(), tuple(reading.lines()))
    return Route(task, TASKS[task], inputs, count, model.name, model.class_name, own.name, tuple(because), data, read)


def _of_command(request: Request) -> Route:
    """The decision about a request of a command that is for one kind of work."""
    settings, model, own = request.settings, request.model, request.task
    given = {name: str(getattr(settings, name)) for name in own.roles if getattr(settings, name)}
    inputs = tuple(
        Given(name.upper() if name == own.argument else flag(name), own.roles[name], path)
        for name, path in given.items()
    )
    because = [f"genkit {own.command} is for this alone"]
    for name in ("method", "preset"):
        if getattr(settings, name, None) is not None:
            because.append(f"{flag(name)} {getattr(settings, name)}")
    count = max(1, len(getattr(settings, "scene", ())))
    return Route(
        own.command, own.help, inputs, count, model.name, model.class_name, own.name, (*because, *request.notes)
    )


def _given(settings: Any, class_name: str, kind: Kind) -> list[Given]:
    """What settings give, with roles."""
    facts = facts_of(class_name)
    told = Inputs() if facts is None else inputs_of(facts.inputs, class_name)
    looks, goes_on = told.looks, told.takes.get("source_video") == (BEGINNING,)
    roles = {
        "source_video": "clip that is continued" if goes_on else "source",
        "image": "reference" if looks else ("source" if kind is IMAGE or settings.mask else "first frame"),
        "last_image": "last frame", "keyframe": "keyframe", "control": "control",
        "mask": "mask of what is made anew", "image_prompt": "picture in place of words", "audio": "given sound",
        "video": "given video", "reference": "subject to follow", "boxes": "track to go along",
    }  # fmt: skip
    found = []
    for name, role in roles.items():
        value = getattr(settings, name, None)
        values = value if isinstance(value, tuple) else (value,) if value else ()
        found += [Given(flag(name), role, str(each)) for each in values]
    return found


def _task(settings: Any, inputs: tuple[Given, ...], kind: Kind, prompts: int) -> tuple[str, str]:
    """The task, and the rule: several prompts, then the second pass, then roles from the most particular one on."""
    roles = {each.role for each in inputs}
    if prompts > 1:
        return "multi_prompt", f"{counted(prompts, 'prompt')} in a row"
    if settings.upscale > 1:
        return "upscale", f"--upscale {settings.upscale:g}"
    order: tuple[tuple[str, str], ...] = (
        ("track to go along", "boxes"), ("mask of what is made anew", "inpaint"), ("control", "control"),
        ("keyframe", "keyframes"), ("last frame", "flf2v"), ("reference", "ref2x"), ("subject to follow", "ref2x"),
        ("picture in place of words", "ref2x"),
        ("clip that is continued", "continuation"), ("source", "i2i" if kind is IMAGE else "v2v"),
        ("first frame", "i2v"),
    )  # fmt: skip
    for role, task in order:
        if role in roles:
            return task, f"a {role} is given"
    made = {IMAGE.name: "t2i", VIDEO.name: "t2v", AUDIO_VIDEO.name: "t2av"}[kind.name]
    return made, "a sound or a video is given" if inputs else "nothing is given beside the text"


def class_of(name: str) -> type | None:
    """A pipeline class of Diffusers; None where this Diffusers lacks it, or a package that the class needs."""
    import diffusers

    kind = getattr(diffusers, name, None)
    return None if type(kind).__name__ == "DummyObject" else kind


def tasks_of(kind: type) -> tuple[str, ...]:
    """The tasks of a pipeline class, by the signature of its call and the record of its family.

    Weights may do fewer: what a folder's own configurations rule out is told by ``genkit models MODEL``.
    """
    class_name = kind.__name__
    facts = facts_of(class_name)
    if facts is None or makes_nothing(kind) is not None:
        return ()
    told, made = inputs_of(facts.inputs, class_name), kind_of(kind)
    found = takes(told, accepted(kind))
    needs = told.needs
    if needs is None:
        wanted = demanded(kind)
        needs = tuple(name for name, arguments in found.items() if any(each in wanted for each in arguments))
    picture = "ref2x" if told.looks else "i2i" if made is IMAGE else "i2v"
    rules: dict[str, Callable[[], bool]] = {
        {IMAGE.name: "t2i", VIDEO.name: "t2v", AUDIO_VIDEO.name: "t2av"}[made.name]: lambda: (
            not needs and "prompt" in accepted(kind)
        ),
        picture: lambda: "image" in found,
        "flf2v": lambda: "last_image" in found,
        "keyframes": lambda: "keyframe" in found,
        "v2v": lambda: "source_video" in found and found["source_video"] != (BEGINNING,),
        "continuation": lambda: found.get("source_video") == (BEGINNING,),
        "inpaint": lambda: "mask" in found,
        "control": lambda: "control" in found,
        "multi_prompt": lambda: can("storyboard", class_name) or chains(kind) is None,
        "upscale": lambda: can("second_pass", class_name),
        "boxes": lambda: can("boxes", class_name),
    }
    chosen = {task for task, fits in rules.items() if fits()}
    if can("reference_pictures", class_name) or hasattr(kind, "load_ip_adapter"):
        chosen.add("ref2x")
    return tuple(task for task in TASKS if task in chosen)


def tasks_of_family(family: Family) -> dict[str, tuple[str, ...]]:
    """Task -> the pipeline classes of a family that do it, its own and those that run on the same folders."""
    found: dict[str, list[str]] = {}
    for kind in classes_of(family):
        for task in tasks_of(kind):
            found.setdefault(task, []).append(kind.__name__)
    return {task: tuple(found[task]) for task in TASKS if task in found}


def classes_of(family: Family) -> list[type]:
    """The pipeline classes of a family: those of Diffusers that are here, and genkit's own."""
    kinds = [kind for name in _names(family) if (kind := class_of(name)) is not None]
    if "given_frames" in family.facts.tasks:
        from genkit.pipelines.tasks.inputs.given_frames import WanGivenFramesPipeline

        kinds.append(WanGivenFramesPipeline)
    return kinds


def missing() -> tuple[str, ...]:
    """Pipeline classes of families that are not here, for a package is missing or Diffusers is older."""
    return tuple(name for family in records() for name in _names(family) if class_of(name) is None)


def _names(family: Family) -> tuple[str, ...]:
    others = [other.name for each in family.facts.others.values() for other in each]
    return tuple(dict.fromkeys((*family.pipelines, *others)))


def table() -> dict[str, dict[str, tuple[str, ...]]]:
    """Family -> task -> pipeline classes, of all families that do any."""
    made = {family.name: tasks_of_family(family) for family in records()}
    return {name: tasks for name, tasks in made.items() if tasks}
