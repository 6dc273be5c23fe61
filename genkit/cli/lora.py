"""``genkit lora``: what a LoRA file is, and files made of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Force, Json
from genkit.cli.output import note, print_json, print_table, say
from genkit.errors import UsageError, counted, explain
from genkit.schema import Rule, number

if TYPE_CHECKING:
    import torch

    from genkit.lora.files import Lora
    from genkit.lora.merge import Made

FORMS = ("diffusers", "comfyui", "kohya", "diffsynth")
DTYPES = ("float32", "bfloat16", "float16")
_RANKS, _ERRORS = Rule(low=1, high=65_536), Rule(low=0, high=1)
#: Modules that a summary lists.
_SHOWN = 5

app = typer.Typer(
    help="Look at LoRA files and make new ones of them: other programs' names, sums, smaller ranks, differences.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[str, typer.Argument(metavar="FILE", help="LoRA file, or a folder with one.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write, ending in .safetensors.")]
Family = Annotated[
    str | None, typer.Option("--family", help="Family of the model, where the file's names fit several.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Precision of the new file: float32, bfloat16 or float16.")]
Rank = Annotated[str | None, typer.Option("--rank", metavar="<int>", help="Largest rank of a module.")]
Error = Annotated[
    str | None,
    typer.Option(
        "--error", metavar="<float>", help="Relative error allowed in every module, in place of --rank: 0.05."
    ),
]


@app.command("info")
def info(
    file: File,
    family: Family = None,
    modules: Annotated[bool, typer.Option("--modules", help="List every module.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="List settings that are as training has them by default, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell what a LoRA file is: format, model family, modules, ranks, alphas, size of the change, facts inside."""
    from genkit.lora.contents import read_lora
    from genkit.lora.info import describe

    told = describe(read_lora(_plain(file).path, family))
    if json:
        print_json(told)
        return
    say(f"{told['file']}: {told['format']} names")
    rows, left = _rows(told, everything)
    print_table(["what", "value"], rows)
    if left:
        say(
            f"{counted(left, 'more setting is', 'more settings are')} as training has them by default; --all lists them"
        )
    shown = told["modules"] if modules else sorted(told["modules"], key=lambda each: -each["norm"])[:_SHOWN]
    print_table(
        ["module", "rank", "alpha", "weight", "norm of the change"],
        [_module_row(each) for each in shown],
    )
    if len(shown) < len(told["modules"]):
        say(f"the {len(shown)} largest of {counted(len(told['modules']), 'module')}; --modules lists all")


def _module_row(each: dict[str, Any]) -> tuple[Any, ...]:
    weight = "x".join(map(str, each["shape"])) + (" (DoRA)" if each["dora"] else "")
    return f"{each['part']}.{each['module']}", each["rank"], f"{each['alpha']:g}", weight, f"{each['norm']:.4g}"


def _rows(told: dict[str, Any], everything: bool) -> tuple[list[tuple[str, Any]], int]:
    """The rows of a summary, and how many settings were left out of it."""
    rows = [
        ("family", ", ".join(told["families"]) or "not known"),
        ("modules", ", ".join(f"{count} in {part}" for part, count in told["parts"].items())),
        ("ranks", _counted(told["ranks"])),
        ("alphas", _counted(told["alphas"])),
        ("weights", f"{told['parameters'] / 1e6:.3f} million, {', '.join(told['dtypes'])}, {told['megabytes']:.2f} MB"),
        ("norm of the change", f"{told['norm']:.4g}"),
        ("sha256", told["sha256"]),
    ]
    facts = told["facts"]
    if facts is None:
        rows.append(("facts", "none: genkit did not make this file"))
    else:
        rows += [(name.replace("_", " "), _short(value)) for name, value in facts.items() if name != "settings"]
        given = {name: value for name, value in facts.get("settings", {}).items() if _given(value)}
        kept = given if everything else _differing(given)
        rows += [(f"setting {name}", _short(value)) for name, value in kept.items()]
        return rows, len(given) - len(kept)
    return rows + [(name, _short(value)) for name, value in told["texts"].items()], 0


def _differing(given: dict[str, Any]) -> dict[str, Any]:
    """The stored settings that are not as training has them by default."""
    from genkit.training.lora.settings import LoraSettings

    known = LoraSettings.defaults()
    return {name: value for name, value in given.items() if name not in known or value != known[name]}


def _counted(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _given(value: Any) -> bool:
    """Whether a stored setting says anything; one that was left open is told by ``--json`` alone."""
    return value is not None and value != [] and value != {}


def _short(value: Any) -> str:
    from genkit.errors import shown

    return value if isinstance(value, str) and len(value) < 200 else shown(value)


@app.command("convert")
def convert(
    file: File,
    to: Annotated[str, typer.Option("--to", help="Names of diffusers, comfyui, kohya or diffsynth.")],
    output: Output,
    family: Family = None,
    dtype: Dtype = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a LoRA under another program's names. What it changes stays the same, also where one layer there stands
    for several here."""
    if to not in FORMS:
        raise UsageError(explain("--to", to, FORMS))
    from genkit.lora.contents import read_lora
    from genkit.lora.convert import check_output
    from genkit.lora.convert import convert as written
    from genkit.lora.words import copy_words

    precision = _dtype(dtype)
    source = _plain(file).path
    check_output(output, [source], force)
    found = read_lora(source, family)
    copy_words([(found.path, found.facts)], output)
    written(found, to, output, precision)
    _tell(output, {"from": found.form, "to": to, "modules": len(found.pairs)}, json)


@app.command("merge")
def merge(
    files: Annotated[list[str], typer.Argument(metavar="FILE[@STRENGTH]...", help="LoRA files with their strengths.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File, or with --into the new model folder.")],
    into: Annotated[
        str | None,
        typer.Option("--into", help="Fold into the weights of this model: name, folder or hub id."),
    ] = None,
    rank: Rank = None,
    error: Error = None,
    different_bases: Annotated[
        bool, typer.Option("--different-bases", help="Merge LoRAs that were trained on different models.")
    ] = False,
    family: Family = None,
    dtype: Dtype = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Merge LoRAs into one whose change is their weighted sum, exactly, or, with --rank or --error, nearly; or fold
    them into a model's weights."""
    from genkit.lora.contents import read_lora

    loras = [_parsed(text) for text in files]
    if into is not None:
        if rank is not None or error is not None or dtype is not None or different_bases:
            raise UsageError(
                "--into adds to a model's weights: --rank, --error, --dtype and --different-bases have no meaning"
            )
        _fold(loras, into, output, family, json)
        return
    from genkit.lora.convert import check_output
    from genkit.lora.merge import merge as merged
    from genkit.lora.words import copy_words

    smaller = _smaller(rank, error)
    precision = _dtype(dtype)
    named = next((lora for lora in loras if lora.part is not None), None)
    if named is not None:
        raise UsageError(f"{named.path.name}:{named.part}: a part is named with --into only")
    check_output(output, [lora.path for lora in loras], force)
    read = [(read_lora(lora.path, family), lora.strength) for lora in loras]
    made = merged(read, *smaller, different_bases)
    copy_words([(contents.path, contents.facts) for contents, _ in read], output)
    _write(made, output, precision, json)


@app.command("resize")
def resize(
    file: File,
    output: Output,
    rank: Rank = None,
    error: Error = None,
    family: Family = None,
    dtype: Dtype = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Cut the ranks of a LoRA down by singular value decomposition; the relative error is printed."""
    from genkit.lora.contents import read_lora
    from genkit.lora.convert import check_output, made_of
    from genkit.lora.merge import resize as resized
    from genkit.lora.words import copy_words

    smaller = _smaller(rank, error, "resizing")
    precision = _dtype(dtype)
    source = _plain(file).path
    check_output(output, [source], force)
    found = read_lora(source, family)
    made = resized(made_of(found, "resize"), *smaller)
    copy_words([(found.path, found.facts)], output)
    _write(made, output, precision, json)


@app.command("extract")
def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model: shipped name, folder or hub id.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same model after fine-tuning.")],
    output: Output,
    rank: Rank = None,
    error: Error = None,
    part: Annotated[
        list[str] | None, typer.Option("--part", help="Compare this part only, such as transformer. Repeatable.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option("--targets", help="Regular expression for whole names of layers; all when left out.")
    ] = None,
    dtype: Dtype = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a LoRA of the difference of two models by singular value decomposition; the relative error is printed."""
    from genkit.lora.convert import check_output
    from genkit.lora.extract import extract as extracted

    smaller = _smaller(rank, error, "extracting")
    precision = _dtype(dtype)
    check_output(output, [], force)
    made, told = extracted(_folder(base), _folder(tuned), *smaller, tuple(part or ()), targets, base)
    for line in told:
        note(line)
    _write(made, output, precision, json)


def _plain(text: str) -> Lora:
    """A file without a strength or part."""
    lora = _parsed(text)
    if lora.strength != 1 or lora.part is not None:
        raise UsageError(f"{text}: a strength or part has no meaning here; give the file alone")
    return lora


def _parsed(text: str) -> Lora:
    from genkit.lora.files import parse_lora

    return parse_lora(text)


def _smaller(rank: str | None, error: str | None, needed_by: str = "") -> tuple[int | None, float | None]:
    """Rank and error within their limits; not both, and one of them for what is named as needing it."""
    if needed_by and rank is None and error is None:
        raise UsageError(f"{needed_by} needs --rank 8, or --error 0.05 to choose the rank of every layer by its error")
    if rank is not None and error is not None:
        raise UsageError("--rank and --error exclude each other: one chooses the other")
    columns: Any = None if rank is None else number(rank, int, "--rank")
    allowed: Any = None if error is None else number(error, float, "--error")
    for flag, value, rule in (("--rank", columns, _RANKS), ("--error", allowed, _ERRORS)):
        if value is not None and not rule.allows(value):
            raise UsageError(explain(flag, value, rule.words("a number")))
    return columns, allowed


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise UsageError(explain("--dtype", name, DTYPES))
    import torch

    return getattr(torch, name)


def _folder(model: str) -> Path:
    """The folder of a model; one of the hub is downloaded."""
    from genkit.models import locate
    from genkit.pipelines.hub import fetch

    return fetch(locate(model))


def _fold(loras: list[Lora], into: str, output: Path, family: str | None, json: bool) -> None:
    from genkit.lora.contents import read_lora
    from genkit.lora.fold import fold
    from genkit.media.atomic import check_writable

    check_writable(output.parent)
    files = [(read_lora(lora.path, family), lora.strength, lora.part) for lora in loras]
    changed = fold(files, _folder(into), output)
    if json:
        print_json({"folder": str(output), "changed": changed})
        return
    told = ", ".join(f"{counted(count, 'weight')} of {part}" for part, count in changed.items())
    say(f"{output}  ({told} changed)")


def _write(made: Made, output: Path, dtype: torch.dtype | None, json: bool) -> None:
    """Write a LoRA in Diffusers' form and tell how near it is."""
    from genkit.lora.convert import write
    from genkit.lora.names import DIFFUSERS

    write(output, made.pairs, DIFFUSERS, made.families, made.facts, dtype)
    ranks = sorted({pair.rank for pair in made.pairs.values()})
    told = {"modules": len(made.pairs), "ranks": ranks, "error": made.error, "worst": made.worst}
    _tell(output, told, json)


def _tell(output: Path, told: dict[str, Any], json: bool) -> None:
    if json:
        print_json({"file": str(output), **told})
        return
    line = f"{output}  ({counted(told['modules'], 'module')}"
    if "to" in told:
        line += f", {told['from']} to {told['to']}"
    else:
        ranks = told["ranks"]
        line += f", rank {ranks[0]}" if len(ranks) == 1 else f", ranks {ranks[0]} to {ranks[-1]}"
        worst = told["worst"]
        line += (
            ", exact"
            if worst is None
            else f", relative error {told['error']:.3g}, at most {worst[1]:.3g} in {worst[0]}"
        )
    say(f"{line})")
