"""``genkit.json`` in a model folder: the call arguments that suit the model, and what it was made for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from genkit.errors import ArtifactError, UsageError, explain
from genkit.reading import rate, read_json
from genkit.reading.files import place
from genkit.schema import Rule, read

NAME = "genkit.json"
Pixels = Annotated[int, Rule(low=1, high=65_536)]
Count = Annotated[int, Rule(low=1, high=1_000_000)]
#: Arguments of a pipeline's call that are genkit's own.
TAKEN = (
    "prompt", "generator", "output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"
)  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """Values for settings that the user leaves open."""

    height: Pixels | None = None
    width: Pixels | None = None
    num_frames: Count | None = None
    fps: str | int | float | None = None
    steps: Count | None = None
    guidance_scale: Annotated[float, Rule(low=0, high=1000)] | None = None
    max_sequence_length: Count | None = None
    negative_prompt: Annotated[str, Rule(most=10_000)] | None = None
    upscale_strength: Annotated[float, Rule(low=0, high=1)] | None = None
    upscale_shift: Annotated[float, Rule(low=0.01, high=100)] | None = None


@dataclass(frozen=True)
class Limits:
    """Sizes that the model was made for."""

    min_height: Pixels | None = None
    max_height: Pixels | None = None
    min_width: Pixels | None = None
    max_width: Pixels | None = None
    multiple: Pixels | None = None
    max_frames: Count | None = None
    frames_multiple: Count | None = None
    max_prompt_tokens: Count | None = None


@dataclass(frozen=True)
class _Content:
    """The file as a whole; ``call`` holds arguments of the pipeline's call."""

    description: Annotated[str, Rule(most=1000)] = ""
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    call: dict[str, str | bool | int | float | list[int | float] | None] = field(default_factory=dict)
    sound: str | None = None
    given_frames: bool = False
    prompts_name: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sidecar:
    """What ``genkit.json`` says.

    Args:
        description: one line for listings.
        defaults: values for settings the user leaves open; keys as in :class:`Defaults`.
        limits: sizes the model was made for; keys as in :class:`Limits`. ``multiple`` divides height and width,
            ``frames_multiple`` divides ``num_frames - 1``.
        call: further arguments of the pipeline's call, passed as they are.
        sound: the kind of spectrogram that the model's audio autoencoder reads, see
            :func:`genkit.families.sound_features.features_of`; None for the usual one.
        given_frames: whether a text-to-video model is trained to be given first, last and beginning frames.
        prompts_name: what every prompt that the model was trained on named, such as "a background", and the words of
            which one must be there for it; a prompt without is warned of before anything is made.
        source: the file, None when the folder has none.
    """

    description: str = ""
    defaults: dict = field(default_factory=dict)
    limits: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    sound: str | None = None
    given_frames: bool = False
    prompts_name: dict[str, list[str]] = field(default_factory=dict)
    source: Path | None = None


def read_sidecar(folder: Path | None) -> Sidecar:
    """Read a model folder's ``genkit.json``; an empty :class:`Sidecar` when there is none.

    Raises:
        ArtifactError: unreadable, an unknown key, or a value of the wrong type or out of its range.
    """
    path = folder / NAME if folder else None
    if path is None or not path.is_file():
        return Sidecar()
    raw = read_json(path, most=1 << 20, finite=True)
    content = read(_Content, raw, place(path), ArtifactError)
    if content.defaults.fps is not None:
        try:
            rate(content.defaults.fps, f"{place(path)}, defaults.fps")
        except UsageError as error:
            raise ArtifactError(str(error)) from error
    taken = next((name for name in content.call if name in TAKEN), None)
    if taken is not None:
        raise ArtifactError(explain(f"{place(path)}, call", taken, f"other arguments than {', '.join(TAKEN)}"))
    defaults, limits = (_named(raw.get(name, {})) for name in ("defaults", "limits"))
    return Sidecar(
        content.description, defaults, limits, content.call, content.sound, content.given_frames, content.prompts_name,
        path,
    )  # fmt: skip


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """The values as the file writes them, without those left open."""
    return {name: value for name, value in values.items() if value is not None}
