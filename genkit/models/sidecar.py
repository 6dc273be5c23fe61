"""``genkit.json`` in a model folder: the call arguments that suit the model, and what it was made for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from genkit.errors import ArtifactError

NAME = "genkit.json"
DEFAULTS = (
    "height", "width", "num_frames", "fps", "steps", "guidance_scale", "max_sequence_length", "negative_prompt",
    "upscale_strength", "upscale_shift",
)  # fmt: skip
LIMITS = (
    "min_height", "max_height", "min_width", "max_width", "multiple", "max_frames",
    "frames_multiple", "max_prompt_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Sidecar:
    """What ``genkit.json`` says.

    Args:
        description: one line for listings.
        defaults: values for settings the user leaves open; keys as in :data:`DEFAULTS`.
        limits: sizes the model was made for; keys as in :data:`LIMITS`. ``multiple`` divides height and width,
            ``frames_multiple`` divides ``num_frames - 1``.
        call: further arguments of the pipeline's call, passed as they are.
        sound: the kind of spectrogram that the model's audio autoencoder reads, see
            :func:`genkit.pipelines.tasks.audio_video.sound_features.features_of`; None for the usual one.
        source: the file, None when the folder has none.
    """

    description: str = ""
    defaults: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    sound: str | None = None
    source: Path | None = None


def read_sidecar(folder: Path | None) -> Sidecar:
    """Read a model folder's ``genkit.json``; an empty :class:`Sidecar` when there is none.

    Raises:
        ArtifactError: unreadable JSON or unknown keys.
    """
    path = folder / NAME if folder else None
    if path is None or not path.is_file():
        return Sidecar()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} must hold a JSON object")
    _only(path, raw, ("description", "defaults", "limits", "call", "sound"))
    defaults, limits = raw.get("defaults", {}), raw.get("limits", {})
    _only(path, defaults, DEFAULTS)
    _only(path, limits, LIMITS)
    return Sidecar(raw.get("description", ""), defaults, limits, raw.get("call", {}), raw.get("sound"), path)


def _only(path: Path, found: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: expected an object with {', '.join(allowed)}, got {found!r}")
    unknown = sorted(set(found) - set(allowed))
    if unknown:
        raise ArtifactError(f"{path}: unknown key {unknown[0]!r}, allowed: {', '.join(allowed)}")
