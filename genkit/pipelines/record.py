"""What an output says about how it was made, and whether this machine would make it the same way."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from genkit import __version__
from genkit.models.check import fingerprint
from genkit.pipelines.request import Settings
from genkit.reading import file_digest

PACKAGES = ("torch", "diffusers", "transformers")


@cache
def version(package: str) -> str:
    """The installed version of a package, or ``"absent"``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def made_with(folder: Path, pipeline_class: str, device: str, loras: Sequence[Path] = ()) -> dict[str, Any]:
    """Versions, machine and model that decide whether a run repeats bit for bit. Holds no time and no host name."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        **{package: version(package) for package in PACKAGES},
        "machine": gpu or platform.machine(),
        "threads": torch.get_num_threads(),
        "pipeline": pipeline_class,
        "model_fingerprint": fingerprint(folder),
        "lora_fingerprints": [file_digest(path)[:16] for path in loras],
    }


def build_record(settings: Settings, made: dict[str, Any], command: str) -> dict[str, Any]:
    """The record stored inside an output: the same request on the same machine gives the same record."""
    return {"genkit": __version__, "command": command, "settings": settings.to_dict(), "made_with": made}


def differences(record: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """One line per circumstance that changed since ``record`` was written: its output may then not repeat exactly."""
    before = record.get("made_with", {})
    return [
        f"{key} was {before[key]}, is {value}" for key, value in made.items() if key in before and before[key] != value
    ]
