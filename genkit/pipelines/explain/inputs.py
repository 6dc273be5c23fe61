"""Guesses at the arguments of a denoiser's forward, from their names and the model's configuration."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UsageError, explain

#: Text tokens of a guess: a prime, so that a sum of tokens tells that text is among them.
TEXT, BATCH = 13, 2
SAMPLES = ("hidden_states", "sample", "x", "latents", "hidden_state")
CLOCKS = ("timestep", "timesteps", "t", "time", "sigma", "noise_level")
_CLOCKS_TOO = ("r_timestep", "timestep_r")
_TEXTS = ("encoder_hidden_states", "context", "encoder_hidden_state", "text_hidden_states", "caption_embeds")
_WIDTHS = ("text", "caption", "cross_attention", "joint_attention", "context", "encoder_hid", "txt", "cap_feat")


@dataclass(frozen=True)
class Guess:
    """Arguments of one forward.

    Args:
        args: by name; tensors are on the meta device.
        sample: name of the argument with the noisy latents.
        axes: order of its axes, "BCTHW", "BCHW", ... or "BNC" for tokens.
        sizes: frames, rows and columns of the latents; of "BNC" the grid itself.
    """

    args: dict[str, Any]
    sample: str
    axes: str
    sizes: tuple[int, int, int]


def parameters(model: Any) -> dict[str, inspect.Parameter]:
    """The forward's named parameters."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in inspect.signature(model.forward).parameters.items() if each.kind in kinds}


def tensors(given: Iterable[str]) -> dict[str, torch.Tensor]:
    """``NAME=2x13x64`` texts as tensors of these shapes on the meta device."""
    found = {}
    for text in given:
        name, _, shape = text.partition("=")
        if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){0,7}", shape) or not name.isidentifier():
            raise UsageError(explain("--input", text, "NAME=SHAPE with sizes joined by x, for instance pooled=2x64"))
        found[name] = _meta(*map(int, shape.split("x")))
    return found


def guesses(model: Any, given: Mapping[str, Any]) -> Iterator[Guess]:
    """Guesses, the likely ones first: orders of the axes, sizes, and widths of the text; ``given`` are certain."""
    config, names = dict(model.config), parameters(model)
    sample = next((name for name in SAMPLES if name in names), "")
    if not sample:
        return
    channels = _channels(config)
    widths = _text_widths(config) if any(name in names for name in _TEXTS) else [0]
    orders = _orders(model, config, names)
    for sizes, axes, width, many in itertools.product(_sizes(config), orders, widths, channels):
        args = _arguments(config, names, sample, axes, sizes, width, many) | dict(given)
        needed = {name for name, each in names.items() if each.default is inspect.Parameter.empty}
        if needed <= set(args):
            yield Guess(args, sample, axes, sizes)


def unknown(model: Any) -> list[str]:
    """Arguments that the forward must have and no guess is known for."""
    config, names = dict(model.config), parameters(model)
    given = _others(config, names, (1, 4, 4))
    known = {*given, *SAMPLES, *_TEXTS}
    return [name for name, each in names.items() if each.default is inspect.Parameter.empty and name not in known]


def _channels(config: Mapping[str, Any]) -> list[int]:
    found = [config.get(name) for name in ("in_channels", "out_channels", "latent_channels", "in_dim", "channels")]
    return list(dict.fromkeys(each for each in found if isinstance(each, int))) or [4, 16]


def _text_widths(config: Mapping[str, Any]) -> list[int]:
    """Widths the text may have, from the configuration's entries about it."""
    found: list[Any] = []
    for name, value in config.items():
        if any(mark in name for mark in _WIDTHS):
            found += value if isinstance(value, (list, tuple)) else [value]
    inner = [config.get("hidden_size"), config.get("num_attention_heads", 0), config.get("attention_head_dim", 0)]
    if isinstance(inner[1], int) and isinstance(inner[2], int):
        inner[1:] = [inner[1] * inner[2]]
    whole = [each for each in (*found, *inner) if isinstance(each, int) and not isinstance(each, bool) and each > 1]
    return list(dict.fromkeys(whole))[:5] or [64]


def _orders(model: Any, config: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """Orders of the axes, the likely one first."""
    patch = config.get("patch_size")
    deep = isinstance(patch, (list, tuple)) and len(patch) == 3
    deep = deep or "3D" in type(model).__name__ or any("temporal" in key or "frames" in key for key in config)
    packed = "img_ids" in names or {"num_frames", "height", "width"} <= set(names)
    video, image = ["BCTHW", "BTCHW", "BTHWC"], ["BCHW", "BHWC"]
    return [*(["BNC"] if packed else []), *(video + image if deep else image + video), *([] if packed else ["BNC"])]


def _sizes(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    # An odd number of frames: four frames behind a token are not taken for two rows and columns.
    own = config.get("sample_size")
    side = own if isinstance(own, int) and 4 <= own <= 256 else 0
    return [(9, 32, 48), (8, 32, 48), *([(9, side, side)] if side else []), (4, 8, 12)]


def _arguments(
    config: Mapping[str, Any], names: Mapping[str, Any], sample: str, axes: str, sizes: Any, width: int, channels: int
) -> dict[str, Any]:
    t, h, w = sizes
    counts = {"B": BATCH, "C": channels, "T": t, "H": h, "W": w, "N": t * h * w}
    if axes == "BNC" and "img_ids" in names:
        counts["N"] = h * w
    args: dict[str, Any] = {sample: _meta(*(counts[axis] for axis in axes))}
    if width:
        args |= {name: _meta(BATCH, TEXT, width) for name in _TEXTS if name in names}
    return args | _others(config, names, sizes)


def _others(config: Mapping[str, Any], names: Mapping[str, Any], sizes: Any) -> dict[str, Any]:
    """Everything but latents and text, as far as the forward takes it."""
    t, h, w = sizes
    pooled = config.get("pooled_projection_dim") or config.get("pooled_dim") or 64
    image = config.get("image_dim") or 0
    heads = config.get("attention_head_dim")
    axes = next((value for name, value in config.items() if name.startswith("axes_dim")), None) or (1, 1, 1)
    whole = {
        **{name: torch.zeros(BATCH, device="meta") for name in (*CLOCKS, *_CLOCKS_TOO)},
        "pooled_projections": _meta(BATCH, pooled),
        "img_ids": _meta(h * w, len(axes)),
        "txt_ids": _meta(TEXT, len(axes)),
        "num_frames": t,
        "height": h,
        "width": w,
        **({"guidance": torch.zeros(BATCH, device="meta")} if config.get("guidance_embeds") else {}),
    }
    needed = {
        "encoder_attention_mask": torch.ones(BATCH, TEXT, dtype=torch.bool, device="meta"),
        "attention_mask": torch.ones(BATCH, TEXT, dtype=torch.bool, device="meta"),
        "class_labels": torch.zeros(BATCH, dtype=torch.long, device="meta"),
        "added_cond_kwargs": {},
        "encoder_hidden_states_image": _meta(BATCH, 5, image or 8),
        "guidance": torch.zeros(BATCH, device="meta"),
        "fps": torch.zeros(BATCH, device="meta"),
        "image_rotary_emb": (_meta(t * h * w, heads or 8), _meta(t * h * w, heads or 8)),
    }
    given = {name: value for name, value in whole.items() if name in names}
    for name, value in needed.items():
        if name in names and name not in given and names[name].default is inspect.Parameter.empty:
            given[name] = value
    if image and "encoder_hidden_states_image" in names:
        given["encoder_hidden_states_image"] = needed["encoder_hidden_states_image"]
    return given


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")
