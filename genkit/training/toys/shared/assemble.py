"""Putting trained parts together into a Diffusers folder that ships: bfloat16 safetensors, sidecar and checksums."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from genkit.errors import ArtifactError
from genkit.models.registry import write_checksums
from genkit.reading import read_json

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LIMIT_MEGABYTES = 20.0


def write_folder(
    pipeline: DiffusionPipeline, folder: Path, sidecar: dict, facts: dict, card: str | None = None
) -> Path:
    """Write a pipeline in bfloat16 with sidecar and checksums to a temporary name and move it into place.

    Args:
        pipeline: what to write; its weights are cast in place.
        folder: where the model goes; an existing folder is replaced once the new one is whole.
        sidecar: content of ``genkit.json``.
        facts: stored as ``training.json``.
        card: model card, stored as ``README.md``; None for no card.

    Raises:
        ArtifactError: the folder would be larger than a shipped model may be; nothing is replaced then.
    """
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(torch.bfloat16)
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    _forget_paths(temporary)
    (temporary / "genkit.json").write_text(json.dumps(sidecar, indent=2) + "\n")
    (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    if card is not None:
        (temporary / "README.md").write_text(card)
    write_checksums(temporary)
    size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) / 1e6
    if size > LIMIT_MEGABYTES:
        raise ArtifactError(
            f"{temporary} has {size:.1f} MB, a shipped model at most {LIMIT_MEGABYTES:.0f}: make it smaller"
        )
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _forget_paths(folder: Path) -> None:
    """Take out of the parts' configurations where they lay on the machine that made them."""
    for path in folder.rglob("*.json"):
        config = read_json(path)
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
