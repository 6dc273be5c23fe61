"""``genkit compare``: several ways to make the same thing, measured against a baseline, in one report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from genkit.cli.options import Force, Json, with_settings
from genkit.cli.output import note, print_json, print_table, quiet_libraries, say, warn
from genkit.cli.progress import RunProgress
from genkit.errors import GenkitError, UsageError, counted
from genkit.evaluation.comparison.settings import OUTPUT, CompareSettings
from genkit.pipelines.request import COMMAND_LINE, read_config


@with_settings(CompareSettings)
def compare(
    given: dict[str, Any],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What to show; several prompts give intervals.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML or JSON file of settings; flags win over it.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Repeat a comparison (its .json); flags change single settings.")
    ] = None,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, tell what would run and what memory it needs.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a model in several ways from the same seeds and tell what each costs and what it changes.

    --attention, --recipe, --cache and --variant, each repeatable, name what is compared with the baseline (dense, the
    model's own attention). The result is one page that needs no network, a contact sheet, the numbers as JSON, and the
    outputs without loss. --lora and all other settings are those of every variant.
    """
    from genkit.evaluation.comparison.plan import plan
    from genkit.evaluation.comparison.report.write import Report

    settings = _settings(given, words or [], config, source)
    note(f"loading {settings.model} ...")
    quiet_libraries()
    report = Report(Path(settings.output or OUTPUT), force=force, played=settings.played)
    report.check()
    planned = plan(settings)
    for line in planned.notes:
        note(f"note: {line}")
    if dry_run:
        _print_plan(planned, report, json)
        return
    _run(planned, report, json)


def _settings(given: dict[str, Any], words: list[str], config: Path | None, source: Path | None) -> CompareSettings:
    """Settings from all sources, the later winning: --from, --config, flags."""
    from genkit.evaluation.comparison.plan import variants_of
    from genkit.pipelines.record import followed, read_record

    if words and ("prompt" in given or "prompts" in given):
        raise UsageError("prompts are given as arguments and with --prompt; leave one out")
    if words:
        given = {**given, "prompts": words}
    written = [] if config is None else [(str(config), read_config(config))]
    stored = None
    if source is not None:
        record = read_record(source)
        if record.command != "compare":
            raise UsageError(f"{source} was made by genkit {record.command or '?'}; repeat it with that command")
        names = {str(name).replace("-", "_") for _, values in written for name in values} | set(given)
        own, plain = variants_of(record.settings, names, str(source))
        values, told = followed(dataclasses.replace(record, settings=plain), str(source), names)
        values |= own
        for line in told:
            warn(line)
        stored = (str(source), values)
    return CompareSettings.from_mappings(*written, (COMMAND_LINE, given), stored=stored)


def _run(planned: Any, report: Any, json: bool) -> None:
    from genkit import __version__
    from genkit.evaluation.comparison.loop import Follower, Loop
    from genkit.evaluation.comparison.memory import machine
    from genkit.evaluation.comparison.results import Comparison, Row

    count = len(planned.variants) * len(planned.prompts) * len(planned.seeds)
    progress = RunProgress(count)

    class Told(Follower):
        """What the terminal shows."""

        def warming(self, name: str) -> None:
            note(f"warming up {name}")

        def progress(self, phase: str, done: int, total: int) -> None:
            progress(phase, done, total)

        def made(self, row: Any, found: Any, run: Any) -> None:
            progress.finished()

        def failed(self, row: Any) -> None:
            warn(f"{row.name} failed and is left out from here on: {row.failed}")

    report.inner = Told()
    rows = [Row(each.variant.name, each.variant.words, number == 0) for number, each in enumerate(planned.variants)]
    comparison = Comparison(rows, list(planned.prompts), list(planned.seeds))
    with report, progress.shown():
        makers = planned.makers()
        progress.begin()
        comparison.about = {
            "genkit": __version__,
            "command": "compare",
            "command_line": shlex.join(["genkit", *sys.argv[1:]]),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": planned.settings.to_dict(),
            "made_with": {**machine(makers[rows[0].name].device), **makers[rows[0].name].session.made},
        }
        try:
            Loop(makers, comparison, report, planned.perceptual, planned.settings.warm_up).run()
        finally:
            if any(row.runs or row.failed for row in rows):
                _write(report, comparison, json)
    if not planned.perceptual and planned.settings.perceptual is None:
        note("no perceptual distance: pip install 'genkit[metrics]' gives ST-LPIPS and VMAF")
    if json:
        print_json({"files": [str(path) for path in report.files], **comparison.to_dict()})
    else:
        header, *lines = comparison.lines()
        print_table(header, lines)
        for line in comparison.remarks():
            warn(line)
        say(f"{report.path}  (and {', '.join(path.name for path in report.files[1:])}, {report.folder.name}/)")
    if comparison.failed:
        names = ", ".join(row.name for row in comparison.failed)
        raise GenkitError(
            f"{len(comparison.failed)} of {counted(len(rows), 'variant')} failed ({names}); the others are in "
            "the report"
        )


def _write(report: Any, comparison: Any, json: bool) -> None:
    """The report, or where it cannot be written its numbers in the terminal (with --json beside the error): they took
    the time."""
    from genkit.errors import ArtifactError

    try:
        report.write(comparison)
    except (OSError, ArtifactError):
        warn(f"{report.path} cannot be written; what was measured:")
        header, *lines = comparison.lines()
        print_table(header, lines)
        if json:
            print_json(comparison.to_dict())
        raise
    if not comparison.finished:
        warn(f"the report of what was made is in {report.path}")


def _print_plan(planned: Any, report: Any, json: bool) -> None:
    from genkit.pipelines.memory import size

    variants = [
        {"name": each.variant.name, "settings": dict(each.variant.settings)} for each in planned.variants
    ]  # fmt: skip
    runs = len(planned.prompts) * len(planned.seeds)
    if json:
        print_json({
            "dry_run": True, "variants": variants, "prompts": planned.prompts, "seeds": planned.seeds,
            "outputs": runs * len(variants), "settings": planned.settings.to_dict(), "perceptual": planned.perceptual,
            "needed_bytes": planned.needed, "free_bytes": planned.free, "files": [str(path) for path in report.files],
            "notes": list(planned.notes),
        })  # fmt: skip
        return
    say(f"would write {', '.join(str(path) for path in report.files)} and {report.folder}/")
    say(
        f"{counted(len(variants), 'variant')} x {counted(len(planned.prompts), 'prompt')} x "
        f"{counted(len(planned.seeds), 'seed')} = {counted(runs * len(variants), 'output')}"
    )
    if planned.needed is not None and planned.free is not None:
        say(f"at least {size(planned.needed)} of memory, {size(planned.free)} are free")
    for number, each in enumerate(planned.variants):
        say(f"  {each.variant.name}{' (baseline)' if number == 0 else ''}: {each.variant.words}")
