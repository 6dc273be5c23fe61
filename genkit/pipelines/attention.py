"""From settings to a patched pipeline: the method by name, its schedule, and what really ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UsageError, explain
from genkit.pipelines.recipe_match import denoisers_of_folder
from genkit.pipelines.recipes import SCHEDULE_KEYS, recipe, recipe_names
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.high_resolution.sizes import patched_steps
from genkit.pipelines.text import join_pairs, parse_pairs

RECOMMENDED = "recommended"


def build(settings: GenerateSettings) -> tuple[Any, Any] | None:
    """The method (or recipe) and schedule that settings ask for, or None when they ask for none. Touches no model.

    Raises:
        UsageError: unknown method, setting, recipe or schedule.
    """
    if settings.attention is None and settings.recipe is None:
        return None
    from genkit.patching.parts import check_backend

    check_backend(settings.backend)
    if settings.schedule == RECOMMENDED and settings.recipe is not None:
        raise UsageError("--schedule recommended goes with --attention; a recipe has its own schedule")
    schedule = parse_schedule(settings.schedule)
    if settings.recipe is not None:
        found = recipe(settings.recipe)
        return (found if schedule is None else found.with_schedule(schedule)), None
    from genkit.attention import registry

    return registry.build(settings.attention, settings.attention_args), schedule


def with_weights(settings: GenerateSettings, folder: Path) -> GenerateSettings:
    """Settings whose ``weights=FILE`` is a full path, beside what the file tells of the method it was trained for.

    The file is looked for as given, then by its name in the model's folder, where shipped weights lie.

    Raises:
        ArtifactError: no such file, or one without weights of this method.
    """
    given = settings.attention_args.get("weights")
    if given in (None, "none"):
        return settings
    from genkit.attention import registry

    places = (Path(str(given)).expanduser(), folder / Path(str(given)).name)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ArtifactError(f"weights {given} do not exist, and {folder} holds none of that name")
    own = registry.trained_settings(settings.attention, path)
    return settings.replace(attention_args={**own, **settings.attention_args, "weights": str(path.resolve())})


def parse_schedule(text: str | None) -> Any:
    """A :class:`genkit.Schedule` from ``"steps=10:-2,layers=1:"``; None for None and for ``"recommended"``, which
    :func:`settle` replaces once the model is known.

    Raises:
        UsageError: an unknown key or a range that has no meaning.
    """
    if text is None or text == RECOMMENDED:
        return None
    from genkit.patching.schedule import Schedule

    pairs = parse_pairs(text, "--schedule")
    for key in pairs:
        if key not in SCHEDULE_KEYS:
            raise UsageError(explain("--schedule", key, SCHEDULE_KEYS))
    branches = pairs.pop("branches", None)
    return Schedule(**pairs, branches=branches.split(",") if branches else None)


def settle(pipeline: Any, settings: GenerateSettings) -> GenerateSettings:
    """Settings whose ``schedule: recommended`` is replaced by the ranges the method's authors use on this model.

    Raises:
        UsageError: the method recommends nothing.
    """
    if settings.schedule != RECOMMENDED:
        return settings
    from genkit.attention import registry
    from genkit.patching import Part
    from genkit.patching.targets import find_denoisers

    method = registry.build(settings.attention, settings.attention_args)
    denoiser = find_denoisers(pipeline)[0]
    sites = denoiser.sites_for(Part(method))
    layers = max((denoiser.layer(site)[1] for site in sites), default=0)
    advice = method.recommended(patched_steps(settings) or 0, layers)
    if not advice:
        raise UsageError(
            f"--schedule recommended: {method.name} recommends none; give ranges such as steps=1:,layers=1:"
        )
    return settings.replace(schedule=join_pairs(advice))


def recipe_place(name: str | None) -> str | None:
    """A recipe's name in a form that means the same from any folder: shipped names as they are, files by their full
    path."""
    return name if name is None or name in recipe_names() else str(Path(name).expanduser().resolve())


def check_model(settings: GenerateSettings, pipeline_class: str, folder: Path) -> None:
    """Refuse a recipe that was made for other models; see :meth:`genkit.pipelines.recipes.Recipe.why_not`."""
    if settings.recipe is not None:
        recipe(settings.recipe).check(denoisers_of_folder(folder), settings.model, pipeline_class)


def check_steps(settings: GenerateSettings) -> None:
    """Refuse a schedule that does not fit the number of steps, before any weights are read.

    Raises:
        UsageError: a step range beyond the steps that are patched.
    """
    built, steps = build(settings), patched_steps(settings)
    if built is None or steps is None:
        return
    from genkit.patching.schedule import resolve

    method, schedule = built
    schedules = [part.schedule for part in getattr(method, "parts", ())] or [schedule]
    for each in schedules if schedule is None else [schedule]:
        if each is not None:
            resolve("steps", each.steps, steps)


def remarks(report: dict[str, Any] | None, settings: GenerateSettings) -> list[str]:
    """What a user should know about a patched run: calls that fell back to the model's own attention, a patch that
    never ran, a recipe made for another number of steps."""
    if report is None:
        return []
    lines = [
        f"attention: {count} calls ran the model's own attention: {why}" for why, count in report["declined"].items()
    ]
    if settings.recipe is not None and settings.schedule is None:
        remark = recipe(settings.recipe).remark(patched_steps(settings))
        lines += [remark] if remark else []
    if not report["ran"]:
        lines.append("attention: the method never ran, so this output is the model's own")
    return lines


@contextmanager
def applied(pipeline: Any, settings: GenerateSettings) -> Iterator[Any]:
    """The pipeline patched as settings say, for the time of the ``with``; yields the patch handle or None."""
    built = build(settings)
    if built is None:
        yield None
        return
    from genkit.patching import patch

    method, schedule = built
    with patch(pipeline, method, schedule=schedule, backend=settings.backend) as handle:
        yield handle


def report_of(handle: Any) -> dict[str, Any] | None:
    """A patch handle's report as plain JSON values; None without a handle."""
    return None if handle is None else plain(handle.report().to_dict())


def plain(value: Any) -> Any:
    """Dataclasses, tuples, sets and numbers of any library as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(part) for part in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
