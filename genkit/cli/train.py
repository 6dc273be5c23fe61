"""``genkit train``: a LoRA from a folder of media, or an attention method's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from genkit.cli.options import Json, with_settings
from genkit.cli.output import note, print_json, quiet_libraries, say
from genkit.pipelines.request import COMMAND_LINE, read_config
from genkit.training.lora.settings import LoraSettings

app = typer.Typer(
    help="Train something small on a frozen model: a LoRA, or an attention method's own weights.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("lora")
@with_settings(LoraSettings)
def lora(
    given: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML or JSON file of settings; flags win over it.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything and print files, buckets, steps, memory and time; train nothing."
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="With --dry-run: load the model and time a few steps.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a LoRA on a folder of pictures or clips with captions.

    The result is OUTPUT/pytorch_lora_weights.safetensors, which Diffusers loads as it is. A run that was stopped goes
    on with --resume-from-checkpoint latest. On several GPUs: accelerate launch scripts/train_lora_video.py.
    """
    settings = settings_of(given, config)
    note("loading ...")
    quiet_libraries()
    train(settings, dry_run, measure, json)


def settings_of(given: dict[str, Any], config: Path | None) -> LoraSettings:
    """Settings of a file and of flags, which win."""
    written = [] if config is None else [(str(config), read_config(config))]
    return LoraSettings.from_mappings(*written, (COMMAND_LINE, given))


def train(settings: LoraSettings, dry_run: bool, measure: bool, json: bool) -> None:
    """Check and train, or tell what would be trained."""
    from genkit.training.lora.run import train_lora

    path = train_lora(settings)
    if json:
        print_json({"file": str(path)})
        return
    say(path)
