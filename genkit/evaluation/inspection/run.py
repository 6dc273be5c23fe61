"""Looking at the attention of one dense run of a model: checked before its weights are read, then run once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.attention.method import Method
from genkit.errors import UsageError, explain
from genkit.evaluation.inspection.look import QUERIES, Look, check_methods, chosen_sites, looked_at
from genkit.evaluation.inspection.picture import draw
from genkit.evaluation.inspection.result import AttentionLook
from genkit.media.atomic import Files
from genkit.media.formats import check_output
from genkit.patching.schedule import parse_spans
from genkit.pipelines.resolve import Request, resolve
from genkit.pipelines.session import Session

if TYPE_CHECKING:
    from genkit.pipelines.following import Progress
    from genkit.pipelines.settings import GenerateSettings


@dataclass(frozen=True)
class LookPlan:
    """A look at a run that passed every check that needs no weights.

    Args:
        request: the run, without an attention method: the model computes densely.
        methods: compared with it. sites: names of the layers. at: steps, as given; None = spread over the run.
        queries: sampled per call.
    """

    request: Request
    methods: tuple[Method, ...]
    sites: tuple[str, ...]
    at: Any = None
    queries: int = QUERIES
    told: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, settings: GenerateSettings, methods: Sequence[Method] = (), sites: Sequence[str] = (), at: Any = None,
        queries: int = QUERIES,
    ) -> LookPlan:  # fmt: skip
        """Check everything.

        Args:
            settings: of ``genkit generate``, without attention, recipe or several outputs.
            methods, sites, at, queries: see :class:`genkit.evaluation.inspection.Look` (``at``: its ``steps``).

        Raises:
            UsageError: what the run would refuse, a layer or steps that the model does not have.
            UnsupportedError: a model without self or joint attention on a grid, or a method that does not fit it.
        """
        if settings.attention is not None or settings.recipe is not None:
            raise UsageError("the run that is looked at computes densely; give methods to compare beside it")
        if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
            raise UsageError(explain("queries", queries, "a whole number from 1"))
        try:
            spans = parse_spans("steps", at)
        except UsageError as error:
            raise UsageError(explain("--at", at, "steps, such as 0,5,-1 or 10:-2")) from error
        request = resolve(settings)
        names = chosen_sites(request.model.outline, sites)
        check_methods(request.model.outline, methods)
        if request.steps is not None:
            try:
                looked_at(spans, request.steps)
            except UsageError as error:
                raise UsageError(f"--at {at}: {str(error).removeprefix('schedule ')}") from error
        return cls(request, tuple(methods), tuple(names), at, queries)

    @property
    def steps(self) -> list[int] | None:
        """The steps that are looked at; None when only the pipeline knows how many there are."""
        total = self.request.steps
        return None if total is None else sorted(looked_at(parse_spans("steps", self.at), total))

    def run(self, progress: Progress | None = None) -> tuple[AttentionLook, dict[str, Any]]:
        """Run the model once; what was seen, and the record of the run (settings, versions, model).

        Raises:
            What a run raises, and UnsupportedError when no attention call could be looked at.
        """
        session = Session(self.request)
        session.load()
        options = {"sites": self.sites, "steps": self.at, "queries": self.queries}
        with Look(session.pipeline, self.methods, **options) as look:
            result = session.run(progress=progress)
        self.told.extend(session.warnings)
        return look.result(), result.record


def check_file(picture: Path, force: bool) -> None:
    """The picture and the JSON beside it may be written.

    Raises:
        UsageError: not a PNG, or a file that is there already. ArtifactError: a folder that cannot be written.
    """
    if picture.suffix.lower() != ".png":
        raise UsageError(explain("--output", str(picture), "a name ending in .png"))
    check_output(picture, force=force)


def write(look: AttentionLook, record: dict[str, Any], picture: Path) -> Path:
    """The plots as PNG and all numbers as JSON beside it, both or none; the JSON's path."""
    settings = record["settings"]
    numbers = picture.with_suffix(".json")
    title = f"Attention of {Path(str(settings['model'])).name}"
    drawn = draw(look, title, [str(settings["prompt"])])
    with Files() as files:
        drawn.save(files.new(picture), format="PNG", optimize=True)
        text = json.dumps({**record, **look.to_dict()}, indent=1)
        files.new(numbers).write_text(text + "\n", encoding="utf-8")
    return numbers
