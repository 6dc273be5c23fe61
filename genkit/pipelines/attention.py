"""What settings ask of attention, as objects: the method or recipe, its schedule and backend, read from text once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, counted, explain
from genkit.pipelines.recipe_match import denoisers_of_folder
from genkit.pipelines.recipes import SCHEDULE_KEYS, Recipe, recipe
from genkit.pipelines.text import join_pairs, parse_pairs

if TYPE_CHECKING:
    import torch

    from genkit.control.rules import Rule
    from genkit.patching.parts import Part
    from genkit.pipelines.model import Model
    from genkit.pipelines.settings import AttentionSettings

RECOMMENDED = "recommended"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Attention:
    """A method or recipe with where it applies and who executes it.

    Args:
        method: an attention method, or a :class:`genkit.pipelines.recipes.Recipe`.
        args: the method's settings as they are stored: texts.
        schedule: where it applies; None = everywhere, or as the recipe says.
        ranges: the schedule as pairs of texts, from which :attr:`text` is made; None without one.
        recommended: the schedule is the method's own advice, which :meth:`settled` looks up.
        backend: who executes the method's operators.
        check_first: the first-step check: True warns, a number is the largest error allowed.
        beside: parts that the task itself adds to the method, or to the model's own attention where ``method`` is None.
    """

    method: Any
    args: dict[str, Any] = field(default_factory=dict)
    schedule: Any = None
    ranges: dict[str, str] | None = None
    recommended: bool = False
    backend: str = "auto"
    check_first: bool | float = False
    beside: tuple[Part, ...] = ()

    @classmethod
    def of(cls, settings: AttentionSettings, folder: Path | None = None) -> Attention | None:
        """Read what settings say; None when they leave the model's own attention.

        Args:
            settings: with method or recipe, their arguments, schedule and backend.
            folder: the model's folder, where a file of ``weights=`` may lie; needed when there is one.

        Raises:
            UsageError: unknown method, setting, recipe, backend or schedule.
            ArtifactError: a file of weights that does not exist or holds none of this method.
        """
        if settings.attention is None and settings.recipe is None:
            return None
        from genkit.attention import registry
        from genkit.patching.parts import check_backend

        check_backend(settings.backend)
        recommended = settings.schedule == RECOMMENDED
        if recommended and settings.recipe is not None:
            raise UsageError("--schedule recommended goes with --attention; a recipe has its own schedule")
        ranges = None if settings.schedule is None or recommended else parse_pairs(settings.schedule, "--schedule")
        schedule = None if ranges is None else parse_schedule(ranges)
        first = settings.check_first if settings.check_limit is None else settings.check_limit
        if settings.recipe is not None:
            found = recipe(settings.recipe)
            method = found if schedule is None else found.with_schedule(schedule)
            for part in method.parts:
                part.method.check_weights()
            return cls(method, {}, None, ranges, False, settings.backend, first)
        args = settings.attention_args
        if args.get(WEIGHTS) not in (None, "none"):
            args = _with_weights(settings.attention, args, folder)
        built = registry.build(str(settings.attention), args)
        built.check_weights()
        return cls(built, args, schedule, ranges, recommended, settings.backend, first)

    @staticmethod
    def needs_folder(settings: AttentionSettings) -> bool:
        """Whether :meth:`of` must wait until the model's folder is known."""
        return WEIGHTS in settings.attention_args

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, or None for a method by name."""
        return self.method if isinstance(self.method, Recipe) else None

    @property
    def text(self) -> str | None:
        """The schedule as it is stored."""
        return None if self.ranges is None else join_pairs(self.ranges)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The methods with their schedules and roles."""
        from genkit.patching.parts import as_parts

        own = () if self.method is None else as_parts(self.method, self.schedule, None)
        return (*own, *self.beside)

    @property
    def _patched(self) -> Any:
        """What the patch is made of: a recipe as itself, since it looks at the model."""
        return list(self.parts) if self.beside else self.method

    def with_defaults(self, **values: Any) -> Attention:
        """With values for the method's settings that the user left open."""
        new = {key: value for key, value in values.items() if key not in self.args}
        texts = {key: _as_text(value) for key, value in new.items()}
        return dataclasses.replace(
            self, method=dataclasses.replace(self.method, **new), args={**texts, **self.args}
        )  # fmt: skip

    def with_beside(self, *parts: Part) -> Attention:
        """With parts that share the layers of the method: those whose methods add to attention."""
        return dataclasses.replace(self, beside=(*self.beside, *parts))

    def on_branches(self, names: str) -> Attention:
        """On these branches only, unless the schedule names some."""
        return self._with_ranges({"branches": names} | (self.ranges or {}))

    def settled(self, model: Model, steps: int | None) -> Attention:
        """With the ranges that the method's authors use on this model where the schedule is ``recommended``.

        Raises:
            UsageError: the method recommends nothing.
        """
        if not self.recommended:
            return self
        from genkit.patching.targets import find_denoisers

        denoiser = find_denoisers(model.outline)[0]
        layers = max((denoiser.layer(site)[1] for site in denoiser.sites_for(self.parts[0])), default=0)
        advice = self.method.recommended(steps or 0, layers)
        if not advice:
            raise UsageError(
                f"--schedule recommended: {self.method.name} recommends none; give ranges such as steps=1:,layers=1:"
            )
        return dataclasses.replace(self._with_ranges(advice), recommended=False)

    def _with_ranges(self, ranges: dict[str, str]) -> Attention:
        return dataclasses.replace(self, ranges=ranges, schedule=parse_schedule(ranges))

    def check_recipe(self, model: Model) -> None:
        """Refuse a recipe that was made for other models; see :meth:`genkit.pipelines.recipes.Recipe.why_not`."""
        if self.recipe is not None:
            self.recipe.check(denoisers_of_folder(model.folder), model.name, model.class_name)

    @contextmanager
    def _of_recipe(self, steps: int | None) -> Iterator[None]:
        """A range that does not fit and that nobody wrote is told as the recipe's, with the run it was made for."""
        try:
            yield
        except UsageError as error:
            if self.recipe is None or self.ranges is not None or not str(error).startswith("schedule "):
                raise
            told = self.recipe.remark(steps) or "--schedule takes the place of its ranges"
            raise UsageError(f"--recipe {self.recipe.name}: {error}; {told}") from error

    def check(self, model: Model, steps: int | None, guided: bool, where: tuple[torch.device, torch.dtype]) -> None:
        """Refuse whatever the run would refuse, from the model's configuration alone.

        Args:
            model: whose denoisers are asked.
            steps: how many steps a schedule can name; None when only the pipeline knows.
            guided: whether the run calls the model for the negative prompt too.
            where: device and dtype of the run.

        Raises:
            UsageError: layers, heads, steps or branches that the run does not have.
            UnsupportedError: a method that fits no attention of the model, or a backend that does not run here.
        """
        from genkit.patching.handle import check
        from genkit.patching.schedule import resolve
        from genkit.patching.targets import find_denoisers

        with self._of_recipe(steps):
            check(model.outline, self._patched, schedule=self.schedule)
            for part in self.parts:
                if part.schedule is not None and steps is not None:
                    resolve("steps", part.schedule.steps, steps)
        families = [denoiser.family for denoiser in find_denoisers(model.outline)]
        for part in self.parts:
            _check_branches(part.schedule, families, guided)
        _check_backend(self.backend, *where)

    def check_beside(self, model: Model, rules: Sequence[Rule], who: str, do: str = "") -> None:
        """Refuse a method on layers that a control takes, in whatever steps: a layer has one owner.

        Args:
            model: whose denoisers are asked.
            rules: of the control, or others that reach the same layers.
            who: what needs them. do: how to be without it.

        Raises:
            UsageError: a layer of both.
        """
        from genkit.control.control import parts_of
        from genkit.patching.handle import check

        if not rules:
            return
        own = parts_of(model.outline, rules)
        try:
            check(model.outline, [*own, *self.parts])
        except UsageError as error:
            name = f"--recipe {self.recipe.name}" if self.recipe else f"--attention {self.parts[0].method.name}"
            raise UsageError(
                f"{name}: {who} works on the same layers of {model.class_name}, in whatever steps; leave "
                f"{name.split()[0]} out{do}"
            ) from error

    @contextmanager
    def applied(self, pipeline: Any) -> Iterator[Any]:
        """The pipeline patched for the time of the ``with``; yields the patch handle."""
        from genkit.patching import patch

        options: dict[str, Any] = {"schedule": self.schedule, "backend": self.backend, "check": self.check_first}
        with patch(pipeline, self._patched, **options) as handle:
            yield handle

    def remarks(self, report: dict[str, Any] | None, steps: int | None) -> list[str]:
        """What a user should know about a patched run: calls that fell back to the model's own attention, a patch that
        never ran, a recipe made for another number of steps."""
        if report is None:
            return []
        told = report["declined"].items()
        lines = [f"attention: {counted(count, 'call')} ran the model's own attention: {why}" for why, count in told]
        lines += [f"attention: {remark}" for remark in report["remarks"]]
        if self.recipe is not None and self.ranges is None:
            remark = self.recipe.remark(steps)
            lines += [remark] if remark else []
        if not report["ran"]:
            lines.append("attention: the method never ran, so this output is the model's own")
        return lines


def parse_schedule(ranges: Mapping[str, str]) -> Any:
    """A :class:`genkit.Schedule` from ``{"steps": "10:-2", "layers": "1:"}``.

    Raises:
        UsageError: an unknown key or a range that has no meaning.
    """
    from genkit.patching.schedule import Schedule

    for key in ranges:
        if key not in SCHEDULE_KEYS:
            raise UsageError(explain("--schedule", key, SCHEDULE_KEYS))
    pairs = dict(ranges)
    branches = pairs.pop("branches", None)
    return Schedule(**pairs, branches=branches.split(",") if branches else None)


def report_of(handle: Any) -> dict[str, Any] | None:
    """A patch handle's report as plain JSON values; None without a handle."""
    return None if handle is None else plain(handle.report().to_dict())


def plain(value: Any) -> Any:
    """Dataclasses, tuples, sets and numbers of any library as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(part) for part in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _with_weights(name: str, args: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Settings whose ``weights=FILE`` is a full path, beside what the file tells of the method it was trained for.

    The file is looked for as given, then by its name in the model's folder, where shipped weights lie.
    """
    from genkit.attention import registry

    given = Path(str(args[WEIGHTS]))
    places = (given.expanduser(), *([] if folder is None else [folder / given.name]))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ArtifactError(f"weights {given} do not exist, and {folder} holds none of that name")
    return {**registry.trained_settings(name, path), **args, WEIGHTS: str(path.resolve())}


def _as_text(value: Any) -> str:
    """A setting of a method as it is typed: ``2x3``, ``true``."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def _check_branches(schedule: Any, families: list[Any], guided: bool) -> None:
    """UsageError for a branch that the calls of a run are never announced as."""
    if schedule is None or not schedule.branches:
        return
    names = dict.fromkeys(name for family in families for name in family.branches)
    for name in sorted(schedule.branches):
        if name not in names:
            kinds = list(names) or "no branches: this model's pipeline computes both halves of guidance in one call"
            raise UsageError(explain("--schedule branches", name, kinds))
    if schedule.branches == {"uncond"} and not guided:
        raise UsageError(
            "--schedule branches=uncond names the calls for the negative prompt, which a run without guidance does "
            "not make; take a --guidance-scale above 1, or other branches"
        )


def _check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """UnsupportedError when a backend asked for by name does not run on this machine, with its own reason."""
    if name == "auto":
        return
    import torch

    from genkit import kernels

    q = torch.zeros(1, 64, 1, 64, device=device, dtype=dtype)
    plan = kernels.BlockPlan.from_dense_blocks(torch.ones(1, 1, dtype=torch.bool, device=device), 64, 64)
    reason = kernels.why_not(name, q, q, q, plan)
    if reason is not None:
        raise UnsupportedError(f"--backend {name} does not run here: {reason}; genkit doctor lists what does")
