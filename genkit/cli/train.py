"""``genkit train``: a LoRA from a folder of media, or an attention method's own weights."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Json, with_settings
from genkit.cli.output import note, print_json, quiet_libraries, say, warn
from genkit.errors import UnsupportedError, UsageError, counted, explain, shown
from genkit.pipelines.forecast import span
from genkit.pipelines.memory import size
from genkit.pipelines.request import COMMAND_LINE, read_config
from genkit.reading import parse_json, read_text, read_toml
from genkit.training.data.source import TOML
from genkit.training.lora.settings import LoraSettings

if TYPE_CHECKING:
    from genkit.training.lora.plan import LoraPlan

#: New words and kinds of layers that a dry run lists.
_WORDS, _LAYERS = 12, 12
#: The path of a layer up to its block: ``down_blocks.*.attentions.*.transformer_blocks.*.``.
_BLOCK = re.compile(r"^.*s\.\*\.")
#: Bytes of a report of training.
MOST_REPORT = 2**20
KINDS = ("image", "video", "audio-video")

app = typer.Typer(
    help="Train something small on a frozen model: a LoRA, or an attention method's own weights.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("lora")
@with_settings(LoraSettings)
def lora(
    given: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML, JSON or TOML file of settings; flags win over it.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything and print files, buckets, steps, layers, memory and arithmetic; train nothing.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: load the model, time a few steps and tell the time of all."),
    ] = False,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Refuse models that make something else: image, video or audio-video.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a LoRA on a folder of pictures or clips with captions.

    The result is OUTPUT/pytorch_lora_weights.safetensors, which Diffusers loads as it is. A run that was stopped goes
    on with --resume-from-checkpoint latest. On several GPUs: accelerate launch scripts/train_lora_video.py.
    """
    settings = settings_of(given, config)
    if is_first():
        note("loading libraries ...")
    quiet_libraries()
    if kind is not None:
        check_kind(settings.model, kind, settings.parts_from)
    train(settings, dry_run, measure, json)


@app.command("weights", add_help_option=False, context_settings={"ignore_unknown_options": True})
def weights(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD [OPTIONS]", help="What is trained; --help lists it.")
    ] = None,
    json: Json = False,
) -> None:
    """Train an attention method's own weights on a frozen model; METHOD --help lists the options."""
    from genkit.training.tasks.run import kinds, train_weights

    if not arguments:
        raise UsageError(f"genkit train weights needs METHOD: {', '.join(kinds())}; see genkit train weights --help")
    # Training tells its course on standard output, where with --json the result alone stands.
    with redirect_stdout(sys.stderr) if json else nullcontext():
        report = train_weights(weights.__doc__ or "", arguments, "genkit train weights")
    if json and report is not None:
        print_json({"report": str(report), **parse_json(read_text(report, MOST_REPORT, "report"), str(report))})


def is_first() -> bool:
    """Whether this is the first process of a distributed run, or the only one: it alone talks."""
    return os.environ.get("RANK", "0") == "0"


def check_kind(model: str, wanted: str, parts_from: str | None = None) -> None:
    """Refuse a model that makes something else."""
    from genkit.models import locate
    from genkit.pipelines.model import Model

    if wanted not in KINDS:
        raise UsageError(explain("--kind", wanted, KINDS))
    found = Model.at(locate(model, files=True), model, parts_from).kind.name
    if found != wanted:
        raise UsageError(
            f"--model {shown(model)} makes {found}, not {wanted}: take genkit train lora, "
            f"or scripts/train_lora_{found.replace('-', '_')}.py"
        )


def settings_of(given: dict[str, Any], config: Path | None) -> LoraSettings:
    """Settings of a file and of flags, which win."""
    written = [] if config is None else [(str(config), _read(config))]
    return LoraSettings.from_mappings(*written, (COMMAND_LINE, given))


def _read(config: Path) -> dict[str, Any]:
    """The names and values of a file; TOML too, which other trainers' configurations are written in."""
    return read_toml(config) if config.suffix.lower() == TOML else read_config(config)


def train(settings: LoraSettings, dry_run: bool, measure: bool, json: bool) -> None:
    """Check and train, or tell what would be trained."""
    if measure and not dry_run:
        raise UsageError("--measure goes with --dry-run: it times a few steps and trains nothing")
    if dry_run:
        plan_only(settings, measure, json)
        return
    from genkit.training.lora.estimate import most_used
    from genkit.training.lora.run import Run

    first = is_first()
    plan = _planned(settings)
    needed = announced(plan, warn) if first else None
    if first:
        note(f"loading the weights of {plan.model.name} ...")
    path = Run.open(settings, note if first else lambda line: None, plan).go()
    if not first:
        return
    used = most_used(plan.device)
    if json:
        print_json({"file": str(path), "memory": {"used": used, "estimated": needed}})
        return
    say(path)
    say(f"  memory: {size(used)} at most" + ("" if needed is None else f", {size(needed)} estimated"))


def _planned(settings: LoraSettings) -> LoraPlan:
    """The checked run; how far that is goes to standard error."""
    from genkit.training.engine.journal import counting
    from genkit.training.lora.plan import LoraPlan

    if is_first():
        note("checking settings, model and data ...")
    return LoraPlan.of(settings, counting("genkit: reading files:", is_first()))


_LESS = "--gradient-checkpointing, a smaller --resolution or --train-batch-size, or --quantization"


def announced(plan: Any, tell: Callable[[str], None], less: str = _LESS) -> float | None:
    """Bytes that a run will need, told before its weights are read, with a warning when there are fewer; None when
    they cannot be estimated.

    Args:
        plan: of the run, with ``estimate()`` and ``device``.
        tell: called with a warning.
        less: options that make it need less, in words.
    """
    from genkit.training.lora.estimate import there_is

    note("estimating memory ...")
    try:
        needed = plan.estimate().memory.peak
    except UnsupportedError as error:
        tell(str(error))
        return None
    free = there_is(plan.device)
    note(f"memory: about {size(needed)} at most" + ("" if free is None else f", {size(free)} are free"))
    if free is not None and needed > free:
        tell(
            f"this run needs about {size(needed)} of memory and {size(free)} are free; --dry-run shows the parts, and "
            f"{less} makes it less"
        )
    return needed


def plan_only(settings: LoraSettings, measure: bool, json: bool) -> None:
    """Tell what would be trained."""
    from genkit.training.lora.dry_run import described

    plan = _planned(settings)
    try:
        note("estimating memory and arithmetic ...")
        estimate = plan.estimate()
    except UnsupportedError as error:
        warn(error)
        estimate = None
    found = described(plan, estimate)
    if measure:
        from genkit.training.lora.measure import measured

        note("loading the weights and timing a few steps ...")
        found["measured"] = measured(plan)
    if json:
        print_json({"dry_run": True, **found})
        return
    for line in lines_of(found):
        say(line)


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """The plan as a person reads it."""
    held = f", {found['held_out']} held out" if found["held_out"] else ""
    yield f"{found['pipeline']} {found['model']}: {found['component']} on {found['device']}, {_types(found)}"
    captions = f"{counted(found['captions'], 'caption')}{_tokens(found)}"
    yield f"data: {counted(found['files'], 'file')}, {counted(found['samples'], 'sample')}{held}, {captions}"
    for place, count in found["buckets"].items():
        yield f"  {place}: {count}"
    if found["new_words"]:
        yield f"new words: {_listed(found['new_words'])}"
    yield f"cache: {found['cache']}"
    yield f"length: {_length(found)}"
    if found["begins_at"] is not None:
        yield f"goes on from: {found['begins_at']}"
    for name, task in found["tasks"].items():
        yield f"task {name}: {task['says']}, {100 * task['share']:.1f}% of the samples"
    if found["words"] is not None:
        yield from _word_lines(found["words"])
    yield f"trained: {found['trainable_parameters']:,} parameters on {counted(sum(found['trained'].values()), 'layer')}"
    yield from layer_lines(found["trained"])
    if found["attention_parameters"]:
        yield f"  the attention methods' own weights: {found['attention_parameters']:,} parameters more"
    if found["route"] is not None:
        yield _route_line(found["route"])
    if found["attention"] is not None:
        yield f"attention: {_attention(found['attention'])}"
    if found["memory"] is not None:
        yield from _memory_lines(found)
        yield f"arithmetic: {_flops(found['flops_per_step'])} a step"
    if "measured" in found:
        yield from _measured_lines(found["measured"])
    for line in found["notes"]:
        yield f"note: {line}"


def _route_line(route: dict[str, Any]) -> str:
    """Which blocks tokens skip, by the first and the last of them."""
    blocks = route["blocks"]
    ends = blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
    return (
        f"route: {100 * route['share']:g}% of the tokens skip {len(blocks)} of {counted(route['of'], 'block')}: {ends}"
    )


def layer_lines(trained: dict[str, int]) -> Iterator[str]:
    """The layers by their path; by the end of it, with all blocks together, where there are too many kinds to read."""
    if len(trained) > _LAYERS:
        ends: dict[str, tuple[int, int]] = {}
        for name, count in trained.items():
            end = _BLOCK.sub("", name)
            layers, places = ends.get(end, (0, 0))
            ends[end] = (layers + count, places + 1)
        for end, (layers, places) in list(ends.items())[:_LAYERS]:
            yield (
                f"  ...{end}: {layers} in {counted(places, 'kind')} of blocks"
                if places > 1
                else f"  ...{end}: {layers}"
            )
        if len(ends) > _LAYERS:
            yield f"  and {len(ends) - _LAYERS} more kinds; --json lists all"
        return
    for name, count in trained.items():
        yield f"  {name}: {count}"


def _word_lines(words: dict[str, Any]) -> Iterator[str]:
    """The words that are learned, and what the steps' prompts are."""
    learned = ", ".join(f"{word} (begins as {start})" for word, start in words["learned"].items())
    yield f"words learned: {learned}: {words['parameters']:,} parameters in {words['encoder']}"
    prompts = words["prompts"]
    yield f"  prompts, {words['sampling']}: {_listed([repr(prompt) for prompt in prompts])}"
    yield f"  prior: {counted(words['prior_images'], 'picture')}" if words["prior_images"] else "  no prior"


def _listed(words: list[str]) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - _WORDS} more" if len(words) > _WORDS else ""
    return ", ".join(words[:_WORDS]) + more


def _tokens(found: dict[str, Any]) -> str:
    return "" if found["caption_tokens"] is None else f" of up to {counted(found['caption_tokens'], 'token')}"


def _types(found: dict[str, Any]) -> str:
    same = found["dtype"] == found["products"]
    return f"weights in {found['dtype']}" + ("" if same else f", products in {found['products']}")


def _length(found: dict[str, Any]) -> str:
    batches = f"{counted(found['batches_per_epoch'], 'batch', 'batches')} an epoch"
    if found["steps"] is None:
        return f"{counted(format(found['minutes'], 'g'), 'minute')}, {batches}"
    return f"{counted(found['steps'], 'step')} = {counted(format(found['epochs'], 'g'), 'epoch')}, {batches}"


def _attention(told: dict[str, Any]) -> str:
    from genkit.patching.report import ADDS

    shares = ADDS if told["adds"] else "density depends on the data"
    if told["executed"] is not None:
        shares = f"{told['computed']:.0%} of pairs wanted, {told['executed']:.0%} executed"
    where = f", {told['schedule']}" if told["schedule"] else ""
    return f"{', '.join(told['methods'])}{where}: {shares}"


def _memory_lines(found: dict[str, Any]) -> Iterator[str]:
    memory, both = found["memory"], found["activations"]
    yield f"memory (estimated for {found['largest_size']}): {size(max(memory['caching'], memory['training']))} at most"
    parts = {
        "frozen denoiser": memory["weights"],
        "adapter, gradients, average, optimizer": memory["adapter"],
        "activations": memory["activations"],
        "program and libraries": memory["overhead"],
    }
    yield f"  training {size(memory['training'])}: " + ", ".join(f"{name} {size(part)}" for name, part in parts.items())
    yield (
        f"  caching {size(memory['caching'])}: autoencoders and text encoders {size(memory['encoders'])} and what they "
        f"need {size(memory['encoding'])}, beside denoiser, program and libraries"
    )
    with_it = both["with gradient checkpointing"]
    saved = "is not offered by this model" if with_it is None else f"makes it {size(with_it)}"
    yield f"  activations without gradient checkpointing {size(both['without'])}; --gradient-checkpointing {saved}"


def _measured_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"measured: {found['seconds_per_step']:.3g} s a step, {size(found['memory'])} at most"
    if found["seconds"] is not None:
        yield f"time: about {span(found['seconds'])} for all steps"


def _flops(count: float) -> str:
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1e6:.3g} MFLOP"
