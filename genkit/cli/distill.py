"""``genkit train distill``: a student of a model, as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Json, with_settings
from genkit.cli.output import note, print_json, quiet_libraries, say, warn
from genkit.cli.train import announced, is_first
from genkit.errors import UnsupportedError, counted
from genkit.pipelines.memory import size
from genkit.pipelines.request import COMMAND_LINE, read_config
from genkit.training.distill.settings import CAUSAL, FEATURES, FORCING, MATCHED, STEPS, DistillSettings

if TYPE_CHECKING:
    from genkit.training.distill.plan import Plan
    from genkit.training.lora.estimate import Estimate

_LESS = "--gradient-checkpointing, a smaller --height, --width or --train-batch-size, or --dtype bfloat16"


@with_settings(DistillSettings)
def distill(
    given: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML or JSON file of settings; flags win over it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print what would be trained; train nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a LoRA under which a model needs few steps and no guidance, or answers under sparse attention as it does
    without; from prompts alone.

    The result is OUTPUT/pytorch_lora_weights.safetensors; genkit generate --lora takes steps, guidance and sampler
    from it, with --attention auto the attention too. A run that was stopped goes on with --resume-from-checkpoint
    latest.
    """
    written = [] if config is None else [(str(config), read_config(config))]
    settings = DistillSettings.from_mappings(*written, (COMMAND_LINE, given))
    first = is_first()
    if first:
        note("loading libraries ...")
    quiet_libraries()
    from genkit.training.distill.plan import Plan
    from genkit.training.distill.run import Run
    from genkit.training.lora.estimate import most_used

    plan = Plan.of(settings)
    if dry_run:
        found = _told(plan)
        print_json(found) if json else _say(found, settings)
        return
    needed = announced(plan, warn, _LESS) if first else None
    if first:
        note(f"loading the weights of {plan.model.name} ...")
    path = Run.open(plan, note if first else lambda line: None).go()
    if not first:
        return
    used = most_used(plan.device)
    if json:
        print_json({"file": str(path), "memory": {"used": used, "estimated": needed}})
        return
    say(str(path))
    say(f"  memory: {size(used)} at most" + ("" if needed is None else f", {size(needed)} estimated"))


def _told(plan: Plan) -> dict[str, Any]:
    """What would be trained, as plain values."""
    settings = plan.settings
    frames, height, width = plan.size
    found: dict[str, Any] = {
        "kind": settings.kind,
        "model": plan.model.name,
        "prompts": plan.prompts.count,
        "frames": frames,
        "height": height,
        "width": width,
        **_of_kind(plan),
        "attention": None if plan.attention is None else [part.method.describe() for part in plan.attention.parts],
        "trainable numbers of the student": plan.trainable,
        "device": str(plan.device),
        "precision": plan.precision,
        "train steps": settings.max_train_steps,
    }
    estimate = _estimated(plan)
    if estimate is not None:
        parts = ("weights", "encoders", "adapter", "activations", "encoding", "overhead")
        found["memory"] = {name: getattr(estimate.memory, name) for name in parts} | {"peak": estimate.memory.peak}
    return found


def _of_kind(plan: Plan) -> dict[str, Any]:
    """What a kind of student has alone."""
    settings = plan.settings
    guided = 2 if plan.guidance != 1 else 1
    if settings.kind == FEATURES:
        asked = None if plan.samples is None else plan.samples.settings
        return {
            "samples of the model": settings.num_samples,
            "steps of a sample": None if asked is None else asked.steps,
            "layers compared": list(plan.layers),
        }
    found: dict[str, Any] = {"steps of the student": settings.student_steps, "guidance of the teacher": plan.guidance}
    if settings.kind in (STEPS, CAUSAL):
        found["steps of the teacher"] = settings.student_steps * settings.substeps
    if settings.kind == STEPS:
        found["calls of the teacher in a micro-batch"] = settings.substeps * guided
    if plan.chunked is not None:
        found["chunks of a clip"] = plan.chunked.chunks
        found["stream"] = [f"{name}={value}" for name, value in plan.chunked.arguments.items()]
    if settings.kind == FORCING:
        found["chunks of the longest roll-out"] = settings.chunks or found["chunks of a clip"]
    if settings.kind in MATCHED:
        found["updates of the fake scores for each of the student"] = settings.fake_updates
    return found


def _estimated(plan: Plan) -> Estimate | None:
    try:
        return plan.estimate()
    except UnsupportedError as error:
        warn(error)
        return None


def _say(found: dict[str, Any], settings: DistillSettings) -> None:
    shown = {"prompts": "without end", "attention": "the model's own"}
    if settings.minutes is not None:
        minutes = counted(format(settings.minutes, "g"), "minute allows", "minutes allow")
        shown["train steps"] = f"as many as {minutes}"
    for name, value in found.items():
        if name == "memory":
            parts = ", ".join(f"{part} {size(count)}" for part, count in value.items() if part != "peak")
            say(f"memory: about {size(value['peak'])} at most ({parts})")
        elif isinstance(value, list):
            say(f"{name}: {', '.join(value)}")
        else:
            say(f"{name}: {shown.get(name, '-') if value is None else value}")
