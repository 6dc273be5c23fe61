"""``genkit train distill``: a few-step student of a model, as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genkit.cli.options import Json, with_settings
from genkit.cli.output import note, print_json, quiet_libraries, say
from genkit.cli.train import is_first
from genkit.pipelines.request import COMMAND_LINE, read_config
from genkit.training.distill.settings import DistillSettings

if TYPE_CHECKING:
    from genkit.training.distill.run import Plan


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
    """Train a LoRA under which a model needs few steps and no guidance, from prompts alone.

    The result is OUTPUT/pytorch_lora_weights.safetensors; genkit generate --lora takes steps, guidance and sampler
    from it. A run that was stopped goes on with --resume-from-checkpoint latest.
    """
    written = [] if config is None else [(str(config), read_config(config))]
    settings = DistillSettings.from_mappings(*written, (COMMAND_LINE, given))
    if is_first():
        note("loading libraries ...")
    quiet_libraries()
    from genkit.training.distill.run import Plan

    plan = Plan.of(settings)
    if dry_run:
        print_json(_told(plan)) if json else _say(plan)
        return
    if is_first():
        note(f"loading the weights of {plan.model.name} ...")
    path = plan.open(note if is_first() else lambda line: None).go()
    if is_first():
        print_json({"file": str(path)}) if json else say(str(path))


def _told(plan: Plan) -> dict[str, Any]:
    """What would be trained, as plain values."""
    settings = plan.settings
    guided = 2 if plan.guidance != 1 else 1
    frames, height, width = plan.size
    return {
        "model": plan.model.name,
        "prompts": plan.prompts.count,
        "frames": frames,
        "height": height,
        "width": width,
        "steps of the student": settings.steps,
        "steps of the teacher": settings.steps * settings.substeps,
        "guidance of the teacher": plan.guidance,
        "calls of the teacher in a micro-batch": settings.substeps * guided,
        "device": str(plan.device),
        "precision": plan.precision,
        "train steps": settings.max_train_steps,
    }


def _say(plan: Plan) -> None:
    for name, value in _told(plan).items():
        shown = {"prompts": "without end", "train steps": f"as many as {plan.settings.minutes} minutes allow"}
        say(f"{name}: {shown.get(name, '-') if value is None else value}")
