"""What pipelines make and which sizes they accept, as small tables; nothing here knows a particular model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from typing import Any

from genkit.errors import UsageError

ReadConfig = Callable[[str], dict]


# setting -> the pipeline's names for it
ARGUMENTS = {
    "negative_prompt": ("negative_prompt",),
    "steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale",),
    "height": ("height",),
    "width": ("width",),
    "num_frames": ("num_frames", "video_length"),
    "fps": ("frame_rate",),
    "max_sequence_length": ("max_sequence_length",),
}


@dataclass(frozen=True)
class Kind:
    """A kind of output.

    Args:
        name: ``"video"``, ``"image"`` or ``"audio-video"``.
        fields: the attributes of the pipeline's output that carry it.
        suffix: of the default output file.
    """

    name: str
    fields: tuple[str, ...]
    suffix: str


AUDIO_VIDEO = Kind("audio-video", ("frames", "audio"), ".mp4")
VIDEO = Kind("video", ("frames",), ".mp4")
IMAGE = Kind("image", ("images",), ".png")

# Frames per second for files, by the beginning of the pipeline's class name: what each family was trained at.
NATIVE_FPS = {
    "Allegro": "15",
    "AnimateDiff": "8",
    "CogVideoX": "8",
    "HunyuanVideo": "24",
    "Kandinsky5": "24",
    "LTX": "24",
    "Latte": "8",
    "Mochi": "30",
    "SkyReels": "24",
    "Wan": "16",
}
DEFAULT_FPS = "16"


@dataclass(frozen=True)
class SizeRule:
    """Accepted sizes: ``multiple`` divides height and width, ``frames_multiple`` divides ``num_frames - 1``."""

    multiple: int
    frames_multiple: int

    def check(self, height: int | None, width: int | None, num_frames: int | None) -> None:
        """Raise UsageError with the two nearest accepted values for a size that breaks the rule."""
        for name, size in (("--height", height), ("--width", width)):
            if size is not None and size % self.multiple:
                low = max(self.multiple, size // self.multiple * self.multiple)
                nearest = str(low) if size < low else f"{low} or {low + self.multiple}"
                raise UsageError(f"{name}: got {size}, allowed: multiples of {self.multiple}; try {nearest}")
        if num_frames is not None and (num_frames - 1) % self.frames_multiple:
            low = (num_frames - 1) // self.frames_multiple * self.frames_multiple + 1
            raise UsageError(
                f"--num-frames: got {num_frames}, allowed: 1 plus a multiple of {self.frames_multiple}; "
                f"try {low} or {low + self.frames_multiple}"
            )


def _wan(config: ReadConfig) -> SizeRule:
    vae, patch = config("vae"), _patch_size(config)
    spatial = vae.get("scale_factor_spatial", 8)
    return SizeRule(lcm(16, spatial * patch[1], spatial * patch[2]), vae.get("scale_factor_temporal", 4))


def _cogvideox(config: ReadConfig) -> SizeRule:
    vae = config("vae")
    spatial = 2 ** (len(vae.get("block_out_channels", (1, 1, 1, 1))) - 1)
    patch = config("transformer").get("patch_size", 2)
    return SizeRule(lcm(8, spatial * patch), vae.get("temporal_compression_ratio", 4))


def _hunyuan(config: ReadConfig) -> SizeRule:
    return SizeRule(16, config("vae").get("temporal_compression_ratio", 4))


def _ltx(config: ReadConfig) -> SizeRule:
    return SizeRule(32, config("vae").get("temporal_compression_ratio", 8) or 8)


def _mochi(config: ReadConfig) -> SizeRule:
    return SizeRule(16, 6)


def _flux(config: ReadConfig) -> SizeRule:
    return SizeRule(2 ** len(config("vae").get("block_out_channels", (1, 1, 1, 1))), 1)


def _unet(config: ReadConfig) -> SizeRule:
    return SizeRule(8, 1)


# By the beginning of the pipeline's class name, the longest match first. An unlisted pipeline checks its sizes itself.
SIZE_RULES: dict[str, Callable[[ReadConfig], SizeRule]] = {
    "Wan": _wan,
    "CogVideoX": _cogvideox,
    "HunyuanVideo": _hunyuan,
    "LTX": _ltx,
    "Mochi": _mochi,
    "Flux": _flux,
    "QwenImage": _flux,
    "StableDiffusion3": _flux,
    "StableDiffusion": _unet,
}


def _patch_size(config: ReadConfig) -> tuple[int, int, int]:
    return tuple(config("transformer").get("patch_size", (1, 2, 2)))


def _wan_token(config: ReadConfig) -> tuple[int, int, int]:
    vae, patch = config("vae"), _patch_size(config)
    spatial = vae.get("scale_factor_spatial", 8)
    return vae.get("scale_factor_temporal", 4) * patch[0], spatial * patch[1], spatial * patch[2]


def _cogvideox_token(config: ReadConfig) -> tuple[int, int, int]:
    vae, transformer = config("vae"), config("transformer")
    spatial = 2 ** (len(vae.get("block_out_channels", (1, 1, 1, 1))) - 1) * transformer.get("patch_size", 2)
    return vae.get("temporal_compression_ratio", 4) * (transformer.get("patch_size_t") or 1), spatial, spatial


def _hunyuan_token(config: ReadConfig) -> tuple[int, int, int]:
    vae, transformer = config("vae"), config("transformer")
    spatial = vae.get("spatial_compression_ratio", 8) * transformer.get("patch_size", 2)
    return vae.get("temporal_compression_ratio", 4) * transformer.get("patch_size_t", 1), spatial, spatial


def _ltx_token(config: ReadConfig) -> tuple[int, int, int]:
    vae, transformer = config("vae"), config("transformer")
    spatial = (vae.get("spatial_compression_ratio") or 32) * transformer.get("patch_size", 1)
    return (vae.get("temporal_compression_ratio") or 8) * transformer.get("patch_size_t", 1), spatial, spatial


def _mochi_token(config: ReadConfig) -> tuple[int, int, int]:
    return 6, 8 * config("transformer").get("patch_size", 2), 8 * config("transformer").get("patch_size", 2)


def _flux_token(config: ReadConfig) -> tuple[int, int, int]:
    spatial = 2 ** len(config("vae").get("block_out_channels", (1, 1, 1, 1)))
    return 1, spatial, spatial


# Frames and pixels behind one token, by the beginning of the pipeline's class name.
TOKEN_SIZES: dict[str, Callable[[ReadConfig], tuple[int, int, int]]] = {
    "Wan": _wan_token,
    "CogVideoX": _cogvideox_token,
    "HunyuanVideo": _hunyuan_token,
    "LTX": _ltx_token,
    "Mochi": _mochi_token,
    "Flux": _flux_token,
    "QwenImage": _flux_token,
    "StableDiffusion3": _flux_token,
}


def token_grid(
    class_name: str, config: ReadConfig, frames: int, height: int, width: int
) -> tuple[int, int, int] | None:
    """The (T, H, W) token grid of a size in pixels, or None for a pipeline class that is not listed."""
    found = _by_prefix(TOKEN_SIZES, class_name)
    if found is None:
        return None
    time, rows, columns = found(config)
    return (frames - 1) // time + 1, height // rows, width // columns


def size_rule(class_name: str, config: ReadConfig) -> SizeRule | None:
    """The size rule of a pipeline class, or None when only the pipeline itself knows. ``config(part)`` returns a
    part's configuration."""
    found = _by_prefix(SIZE_RULES, class_name)
    return found(config) if found else None


def native_fps(class_name: str) -> str:
    """Frames per second that suit a pipeline class; 16 for unlisted ones."""
    return _by_prefix(NATIVE_FPS, class_name) or DEFAULT_FPS


def _by_prefix(table: dict[str, Any], class_name: str) -> Any | None:
    match = max((prefix for prefix in table if class_name.startswith(prefix)), key=len, default=None)
    return table[match] if match else None


def accepted(pipeline_class: type) -> dict[str, inspect.Parameter]:
    """The arguments of a pipeline's call, by name."""
    parameters = dict(inspect.signature(pipeline_class.__call__).parameters)
    parameters.pop("self", None)
    return parameters


def kind_of(pipeline_class: type) -> Kind:
    """What a pipeline class makes, read from its call's arguments: frames mean video, frames and sound mean both."""
    arguments = accepted(pipeline_class)
    if "num_frames" not in arguments and "video_length" not in arguments:
        return IMAGE
    return AUDIO_VIDEO if any(name.startswith("audio") for name in arguments) else VIDEO
