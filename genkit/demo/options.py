"""What one server offers: models, LoRAs, ways of attention, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from genkit.errors import GenkitError, UsageError, explain

#: Name of the choice that leaves the model's attention as it is.
OWN = "The model's own"
RECIPE = "recipe: "
#: Setting of methods that are trained.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Offer:
    """What visitors may choose.

    Args:
        root: folder of this server's files.
        models: names and folders of models, the first one is chosen at first.
        loras: files by the name they are shown under.
        any_model: whether other models may be typed too.
        device, dtype: where and in what runs compute, as settings name them.
    """

    root: Path
    models: tuple[str, ...]
    loras: dict[str, Path] = field(default_factory=dict)
    any_model: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def check_model(self, name: str | None) -> str:
        """The model of a choice.

        Raises:
            UsageError: none of the list, and other models are not allowed.
        """
        if not isinstance(name, str) or (name not in self.models and not self.any_model):
            do = "only who runs the server can offer others"
            raise UsageError(explain("model", name, self.models, do))
        return name

    def offered(self, name: Any) -> str | None:
        """What a stored model is called here: a name, or a folder that results name by its full path; None for one that
        cannot be chosen."""
        if not isinstance(name, str) or not name:
            return None
        same = (
            each
            for each in self.models
            if each == name or (Path(name).is_absolute() and Path(each).resolve() == Path(name))
        )
        return next(same, name if self.any_model else None)

    def models_of(self, *kinds: str) -> list[str]:
        """The models that make one of these kinds of output ("image", "video", "audio-video")."""
        return [name for name in self.models if kind_of_model(name) in kinds]


@cache
def kind_of_model(name: str) -> str | None:
    """What a model makes; None for one that cannot be told without downloading it."""
    from genkit.models import locate
    from genkit.models.check import check_folder
    from genkit.pipelines.kinds import kind_of
    from genkit.pipelines.load import find_class

    try:
        location = locate(name)
        if location.path is None:
            return None
        return kind_of(find_class(location.path, check_folder(location.path)["_class_name"])).name
    except GenkitError:
        return None


@cache
def defaults_of(name: str) -> dict:
    """What a model's ``genkit.json`` says of sizes, steps and guidance; empty for one that has none here."""
    from genkit.models import locate, read_sidecar

    try:
        path = locate(name).path
        return {} if path is None else dict(read_sidecar(path).defaults)
    except GenkitError:
        return {}


@cache
def has_fast(name: str) -> bool:
    """Whether a model has a LoRA for few steps in its folder."""
    from genkit.models import locate
    from genkit.pipelines.few_steps import fast_file

    try:
        path = locate(name).path
        return path is not None and fast_file(path).is_file()
    except GenkitError:
        return False


def attentions(model: str | None = None) -> list[str]:
    """The choices of attention: the model's own, the methods that need no files, and the recipes.

    Args:
        model: leave out the recipes that were made for others; None keeps all.
    """
    from genkit.pipelines.recipes import recipe_names

    names = recipe_names() if model is None else _recipes_of(model)
    return [OWN, *_methods(), *(f"{RECIPE}{name}" for name in names)]


@cache
def _methods() -> tuple[str, ...]:
    """Methods without weights of their own, which a file would have to be given for. Those of a learned bias, which
    methods share, are none."""
    from genkit.attention import registry

    return tuple(name for name in registry.usable() if WEIGHTS not in registry.method_class(name).__annotations__)


@cache
def _recipes_of(model: str) -> tuple[str, ...]:
    """The shipped recipes that suit a model here; none for a model that cannot be told without downloading it."""
    from genkit.models import locate
    from genkit.models.check import check_folder
    from genkit.pipelines.recipe_match import denoisers_of_folder
    from genkit.pipelines.recipes import recipe, recipe_names

    try:
        folder = locate(model).path
        if folder is None:
            return ()
        denoisers, kind = denoisers_of_folder(folder), check_folder(folder)["_class_name"]
    except GenkitError:
        return ()
    found = {name: recipe(name) for name in recipe_names()}
    return tuple(name for name, each in found.items() if each.why_not(denoisers, model, kind) is None)


def attention_settings(choice: Any, args: Any, where: Any, model: str | None = None) -> dict[str, str]:
    """The settings of attention behind a choice; empty for the model's own.

    Args:
        choice: one of :func:`attentions`.
        args: settings of the method as ``key=value,key=value``.
        where: schedule, or empty.
        model: whose choices a message lists; None for all.

    Raises:
        UsageError: a choice that does not exist, or settings that name a file.
    """
    from genkit.pipelines.text import parse_pairs

    for name, value in (("attention", choice), ("settings of the method", args), ("where it applies", where)):
        if not isinstance(value, str | None):
            raise UsageError(explain(name, value, "a text"))
    if not choice or choice == OWN:
        return {}
    if choice not in attentions():
        raise UsageError(explain("attention", choice, attentions(model)))
    found = {}
    if choice.startswith(RECIPE):
        found["recipe"] = choice.removeprefix(RECIPE)
    else:
        found["attention"] = choice
        if args and args.strip():
            if WEIGHTS in parse_pairs(args.strip(), "--attention-args"):
                raise UsageError("weights of a method are files, which are not opened from here; leave it out")
            found["attention_args"] = args.strip()
    if where and where.strip():
        found["schedule"] = where.strip()
    return found
