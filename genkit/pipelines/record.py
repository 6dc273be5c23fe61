"""What an output says about how it was made, and whether this machine would make it the same way."""

from __future__ import annotations

import platform
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from genkit import __version__
from genkit.errors import ArtifactError, UsageError, escaped, shortened, shown
from genkit.media.files import read_settings
from genkit.models import locate
from genkit.pipelines.request import Settings, flag
from genkit.reading import file_digest
from genkit.reading.files import place
from genkit.schema import open_keys, read

#: Settings that name files by their full paths.
FILES = (
    "lora", "lora_router", "lora_mask", "recipe", "reference", "audio", "video", "image", "mask", "style",
    "last_image", "keyframe", "source_video", "control", "image_prompt", "ip_adapter", "controlnet", "denoiser",
)  # fmt: skip
#: What stands before the path in settings that also name a frame or a kind: ``0=/home/me/first.png``.
_NAME = re.compile(r"-?\w+=(?=[/~.\\]|\w:)")
#: Settings that name models, which may be folders or of the hub.
MODELS = ("model", "upscaler", "parts_from")
PACKAGES = ("torch", "diffusers", "transformers")


@cache
def version(package: str) -> str:
    """The installed version of a package, or ``"absent"``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def made_with(model: str, pipeline_class: str, device: str, loras: Sequence[Path] = ()) -> dict[str, Any]:
    """Versions, machine and model that decide whether a run repeats bit for bit. Holds no time and no host name.

    Args:
        model: its digest. pipeline_class: its class. device: as text. loras: files.
    """
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        **{package: version(package) for package in PACKAGES},
        "machine": gpu or platform.machine(),
        "threads": torch.get_num_threads(),
        "pipeline": pipeline_class,
        "model_fingerprint": model,
        "lora_fingerprints": [file_digest(path)[:16] for path in loras],
    }


def build_record(settings: Settings, made: dict[str, Any], command: str) -> dict[str, Any]:
    """The record stored inside an output: the same request on the same machine gives the same record."""
    return {"genkit": __version__, "command": command, "settings": settings.to_dict(), "made_with": made}


@open_keys
@dataclass(frozen=True)
class Record:
    """What an output says about how it was made.

    Args:
        settings: of the run.
        made_with: versions, machine and model, see :func:`made_with`.
        command: the subcommand that made it; empty in records of other programs.
    """

    settings: dict[str, Any]
    made_with: dict[str, Any] = field(default_factory=dict)
    command: str = ""


def read_record(path: Path) -> Record:
    """The record in an output or in the .json beside it.

    Raises:
        ArtifactError: missing or unreadable file, none that genkit made, or a record of the wrong form.
    """
    return read(Record, read_settings(path), f"the record in {place(path)}", ArtifactError)


def followed(record: Record, origin: str, written: Container[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of a record that may be repeated, and what was left out, one line each.

    A record may come from somebody else. It never says where to write, and names files by their full paths or not at
    all, as genkit does. A model that would be downloaded must be named by the user.

    Args:
        record: from :func:`read_record`.
        origin: its file, for messages.
        written: names of settings that the user gives, which the record does not decide.

    Raises:
        UsageError: a path that leads elsewhere, or a model of the hub.
    """
    settings, told = dict(record.settings), []
    if settings.pop("output", None) is not None:
        told.append(f"{origin} says where to write, which is not followed; --output does")
    for name in FILES:
        values = settings.get(name) if name not in written else None
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str) and (name != "recipe" or len(Path(value).parts) > 1):
                path = file_of(name, value)
                _check_place(origin, name, path, Path(path).is_absolute())
    arguments = settings.get("attention_args") if "attention_args" not in written else None
    weights = arguments.get("weights") if isinstance(arguments, dict) else None
    if isinstance(weights, str):
        _check_place(origin, "attention_args weights", weights, True)
    for name in MODELS:
        model = settings.get(name) if name not in written else None
        if isinstance(model, str) and locate(model, files=True).kind == "hub":
            raise UsageError(
                f"{origin} was made with {shown(model)} of the Hugging Face hub, which would be downloaded; "
                f"add {flag(name)} {escaped(model)} if you trust it"
            )
    return settings, told


def file_of(name: str, value: str) -> str:
    """The file in a setting's value, without the number of a frame or the kind of a control before it."""
    return _NAME.sub("", value, count=1) if name in ("keyframe", "control", "denoiser") else value


def _check_place(origin: str, name: str, value: str, allowed: bool) -> None:
    if not allowed or ".." in Path(value).parts:
        raise UsageError(
            f"{origin} names a file by a path that genkit does not store ({name}: {shown(value)}); "
            f"give it with --{name.split()[0].replace('_', '-')} if you trust it"
        )


def differences(record: Record, made: dict[str, Any]) -> list[str]:
    """One line per circumstance that changed since ``record`` was written: its output may then not repeat exactly."""
    before = record.made_with
    return [
        f"{key} was {_plain(before[key])}, is {_plain(value)}"
        for key, value in made.items()
        if key in before and before[key] != value
    ]


def _plain(value: Any) -> str:
    return shortened(escaped(value)) if isinstance(value, str) else shown(value)
