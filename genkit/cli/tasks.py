"""A subcommand for every task that makes outputs: ``genkit generate`` and what else ``genkit/pipelines/tasks`` holds.

All of them take their settings as flags, from a file and from an earlier output, and have the same few options beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Force, Json, with_settings
from genkit.cli.output import note, print_json, quiet_libraries, say, warn
from genkit.cli.processes import Processes, processes
from genkit.cli.progress import RunProgress
from genkit.cli.streaming import PIPE, check_stream, write_stream
from genkit.errors import UsageError, counted
from genkit.pipelines.request import COMMAND_LINE, Settings, read_config
from genkit.pipelines.task import Task, commands

if TYPE_CHECKING:
    from genkit.pipelines.session import Session

MORE = (
    "Without --model the shipped {usual} is used. Sizes, steps and so on that are left open come from the model's "
    "genkit.json or the pipeline's own defaults. Every output carries its settings inside and in a .json beside it."
)


def task_commands() -> Iterator[tuple[str, Callable]]:
    """Name and function of the subcommand of every task."""
    for name, task in commands().items():
        yield name, _command(name, task)


def _command(name: str, task: Task) -> Callable:
    @with_settings(task.settings, task.argument)
    def command(
        given: dict[str, Any],
        config: Annotated[
            Path | None, typer.Option("--config", help="YAML or JSON file of settings; flags win over it.")
        ] = None,
        source: Annotated[
            Path | None, typer.Option("--from", help="Repeat an output (or its .json); flags change single settings.")
        ] = None,
        prompt_file: Annotated[
            Path | None, typer.Option("--prompt-file", help="One prompt per line, one output each.")
        ] = None,
        force: Force = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Check everything, print the settings, generate nothing.")
        ] = False,
        explain: Annotated[
            bool,
            typer.Option("--explain", help="Tell which task this is, what plays which role and why; generate nothing."),
        ] = False,
        json: Json = False,
    ) -> None:
        read = config is not None or source is not None  # a file may name the model; otherwise it is said at once
        if not read:
            note(f"loading {task.model_of(given)} ...")
        record, prompts, settings, told = _settings(name, task, given, config, source, prompt_file)
        if read:
            note(f"loading {task.model_of(settings.to_dict())} ...")
        _run(settings, prompts, record, told, force, dry_run, json, explain)

    command.__name__ = name
    command.__doc__ = f"{task.help}\n\n{MORE.format(usual=task.usual)}"
    return command


def _run(
    settings: Settings, prompts: list[str], record: Any, told: list[str], force: bool, dry_run: bool, json: bool,
    explain: bool,
) -> None:  # fmt: skip
    """Check everything, then make one output after the other; several processes share them."""
    quiet_libraries()
    with processes() as joined:
        _run_share(joined, settings, prompts, record, told, force, dry_run, json, explain)


def _run_share(
    joined: Processes, settings: Any, prompts: list[str], record: Any, warned: list[str], force: bool, dry_run: bool,
    json: bool, explain: bool = False,
) -> None:  # fmt: skip
    from genkit.media.claim import claimed
    from genkit.pipelines.jobs import check_outputs, expand
    from genkit.pipelines.resolve import resolve
    from genkit.pipelines.session import Session

    request = resolve(_for_all(joined, settings))
    jobs = expand(request, [request.settings.prompt if prompt is None else prompt for prompt in prompts])
    streamed = request.task.stream is not None
    if streamed:
        check_stream(request.settings, prompts, jobs[0][1], force or explain, json)
    else:
        check_outputs(jobs, force=force or explain)  # what only tells writes nothing
    speak = note if joined.first else _silent
    for line in request.notes:
        speak(f"note: {line}")
    warned = list(warned)
    for job, _ in jobs:  # a prompt that is too long must not stop a batch half way
        for line in request.read(job).told:
            if line not in (*request.notes, *warned):
                warned.append(line)
                if joined.first:
                    warn(line)
    lines = {"notes": list(request.notes), "warnings": warned}
    if explain:
        if joined.first:
            _print_route(request, lines, json)
        return
    if dry_run:
        if joined.first:
            _print_plan(jobs, _inputs(request), lines, json)
        return
    joined.wait()  # no file of one process is there before the others have looked
    session = Session(request)
    if streamed:
        if joined.first:
            with claimed(output for _, output in jobs if str(output) != PIPE):
                write_stream(session, *jobs[0], warned, json)
        joined.wait()
        return
    mine = joined.share(jobs)
    with claimed(output for _, output in mine):
        outputs = _made(joined, session, mine, record, warned, force)
    later = [line for line in session.warnings if line not in (*request.notes, *warned)]
    for line in later:
        warn(line)
    outputs = joined.all(outputs)
    if joined.first:
        _print_outputs(outputs, {**lines, "warnings": warned + later}, json)


def _made(
    joined: Processes, session: Session, mine: list[Any], record: Any, warned: list[str], force: bool
) -> list[Any]:
    """Make and write this process's share of the outputs; what it warns of is added to ``warned``."""
    outputs = []
    progress = RunProgress(len(mine))
    with progress.shown() if joined.first else nullcontext():  # the first process stands for the time of all
        if mine:
            session.load()
        if joined.first:
            progress.begin()
            for line in _changes(record, session.made):
                warned.append(line)
                warn(line)
        for job, output in mine:
            result = session.run(job, progress if joined.first else None)
            files = result.write(output, force=force)
            progress.finished()
            outputs.append(_summary(output, files, result))
    return outputs


def _for_all(joined: Processes, settings: Any) -> Any:
    """Settings with what every process must have alike, or for itself."""
    if joined.count == 1:
        return settings
    changes: dict[str, Any] = {}
    if getattr(settings, "seed", 0) is None:
        from genkit.pipelines.resolve import draw_seed

        changes["seed"] = joined.same(draw_seed())
    if getattr(settings, "device", None) is not None:
        changes["device"] = joined.device(settings.device)
    return settings.replace(**changes)


def _silent(line: str) -> None:
    """What another process says already."""


def _settings(
    command: str,
    task: Task,
    given: dict[str, Any],
    config: Path | None,
    source: Path | None,
    prompt_file: Path | None,
) -> tuple[Any, list[str], Any, list[str]]:
    """Settings from all sources, the later winning: --from, --config, flags. Returns the --from record, all prompts,
    settings, and what was warned of."""
    from genkit.pipelines.prompts import read_prompt_file
    from genkit.pipelines.record import followed, read_record

    written = [] if config is None else [(str(config), read_config(config))]
    record = stored = None
    told: list[str] = []
    if source is not None:
        record = read_record(source)
        if record.command not in ("", command):
            raise UsageError(f"{source} was made by genkit {record.command}; repeat it with that command")
        names = {str(name).replace("-", "_") for _, values in written for name in values} | set(given)
        values, told = followed(record, str(source), names)
        for line in told:
            warn(line)
        stored = (str(source), values)
    settings = task.settings.from_mappings(*written, (COMMAND_LINE, given), stored=stored)
    listed = list(getattr(settings, task.several)) if task.several is not None else []
    if prompt_file is None and listed:
        prompts = [settings.prompt, *listed] if settings.asked("prompt") else listed
        return record, prompts, settings.replace(prompt=prompts[0]), told
    if prompt_file is None:
        return record, [settings.prompt], settings, told
    if "prompt" in given:
        raise UsageError("give a prompt or --prompt-file, not both")
    if getattr(settings, "instruction", None) is not None:
        raise UsageError("--instruction says what is seen, as --prompt-file does; leave one out")
    if task.several is not None and settings.asked(task.several):
        raise UsageError(f"give --{task.several} or --prompt-file, not both")
    prompts = read_prompt_file(prompt_file)
    return record, prompts, settings.replace(prompt=prompts[0]), told


def _changes(record: Any, made: dict[str, Any]) -> list[str]:
    from genkit.pipelines.record import differences

    changed = differences(record, made) if record else []
    return [f"this run may differ from the original: {line}" for line in changed]


def _summary(output: Path, files: list[Path], result: Any) -> dict[str, Any]:
    count, height, width = result.frames.shape[:3]
    return {
        "file": str(output),
        "files": [str(file) for file in files],
        "frames": count,
        "height": height,
        "width": width,
        "fps": None if result.fps is None else str(result.fps),
        "sound": None if result.audio is None else _sound(result),
        "seconds": round(result.seconds, 3),
        "settings": result.settings.to_dict(),
        "attention": result.report,
    }


def _sound(result: Any) -> dict[str, Any]:
    samples, channels = result.audio.shape
    return {"samples": samples, "channels": channels, "sample_rate": result.sample_rate}


def _inputs(request: Any) -> dict[str, str]:
    """Every input beside the prompt and whether the model takes it, of commands that take such."""
    from genkit.pipelines.settings import GivenSettings
    from genkit.pipelines.tasks.inputs.serving import every_input

    return every_input(request.model) if isinstance(request.settings, GivenSettings) else {}


def _print_route(request: Any, lines: dict[str, list[str]], json: bool) -> None:
    from genkit.pipelines.routes import route_of

    route = route_of(request)
    if json:
        print_json({"route": route.to_dict(), **lines})
        return
    for line in route.lines():
        say(line)


def _print_plan(jobs: list, inputs: dict[str, str], lines: dict[str, list[str]], json: bool) -> None:
    plan = [{"file": str(output), "settings": job.to_dict()} for job, output in jobs]
    if json:
        print_json({"dry_run": True, "outputs": plan, "inputs": inputs, **lines})
        return
    for entry in plan:
        say(f"would write {entry['file']}")
    if len(plan) > 1:
        say(f"settings that the first of {counted(len(plan), 'file')} will carry; the others differ by prompt or seed:")
    for name, value in plan[0]["settings"].items():
        if value not in (None, [], {}):
            say(f"  {name}: {value}")
    if inputs:
        say("inputs beside the prompt:")
        for name, told in inputs.items():
            say(f"  {name}: {told}")


def _print_outputs(outputs: list[dict[str, Any]], lines: dict[str, list[str]], json: bool) -> None:
    if json:
        print_json({"outputs": outputs, **lines})
        return
    for entry in outputs:
        shape = f"{entry['width']}x{entry['height']}"
        if entry["fps"]:
            shape = f"{counted(entry['frames'], 'frame')} {shape} at {entry['fps']} fps"
        if entry["sound"]:
            sound = entry["sound"]
            shape += f", {sound['samples'] / sound['sample_rate']:.3f} s of sound at {sound['sample_rate']} Hz"
        seed = f"seed {entry['settings']['seed']}, " if "seed" in entry["settings"] else ""
        say(f"{entry['file']}  ({shape}, {seed}{entry['seconds']:.1f} s)")
        if entry["attention"]:
            say(f"  {_attention_line(entry)}")


def _attention_line(entry: dict[str, Any]) -> str:
    """What ran, method by method: those that compute the attention, then those that add to it."""
    from genkit.patching.report import ADDS

    report, settings = entry["attention"], entry["settings"]
    computing = [site for site in report["sites"] if not site["adds"]]
    told = []
    if computing:
        density = report["density"]
        pairs = "density depends on the data" if density is None else f"{density['computed']:.0%} of pairs wanted, "
        pairs += "" if density is None else f"{density['executed']:.0%} executed"
        name = settings["recipe"] or ", ".join(_by_method(computing))
        told.append(f"{name}: {_calls(computing)}, {pairs}")
    adding = _by_method(site for site in report["sites"] if site["adds"])
    told += [f"{name} ({ADDS}): {_calls(sites)}" for name, sites in adding.items()]
    return f"{'; '.join(told)}, {report['seconds']:.2f} s"


def _by_method(sites: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Sites by the names of their methods, which sites tell with settings in brackets."""
    found: dict[str, list[dict[str, Any]]] = {}
    for site in sites:
        found.setdefault(site["method"].partition("(")[0], []).append(site)
    return found


def _calls(sites: list[dict[str, Any]]) -> str:
    ran = sum(site["ran"] for site in sites)
    every = ran + sum(site["outside"] + sum(site["declined"].values()) for site in sites)
    return f"{ran} of {counted(every, 'attention call')}"
