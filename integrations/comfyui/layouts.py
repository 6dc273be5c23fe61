"""How the models of ComfyUI lay out the tokens of their self-attention: one record per class, as data.

A record is written for a class whose source was read and which was run; another class is refused, also a subclass:
where its tokens are would be a guess. Every token of a sequence must be accounted for, or the call is not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from genkit.layout import Segment, TokenLayout


@dataclass(frozen=True)
class Record:
    """One class of diffusion models.

    Args:
        patch: attributes of the model that hold the size of a patch: one for all axes, or two (time, space); none
            when a token is one latent place.
        blocks: attributes that hold the blocks, in the order they run.
        before, after: conditionings whose tokens stand before and after the grid in the sequence; ``"text"`` is the
            cross-attention conditioning, of the others only those that are given count.
        keys: conditionings that cross-attention reads apart from self-attention.
        frames: a conditioning whose frames follow those of the latent in the grid.
        appended: a conditioning with one column per token at the end of the latent that is no place of the grid.
        levels: whether the grid differs between blocks (UNets).
    """

    patch: tuple[str, ...] = ("patch_size",)
    blocks: tuple[str, ...] = ("blocks",)
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    frames: str | None = None
    appended: str | None = None
    levels: bool = False


_WAN = Record(
    before=("reference_latent",), after=("context_latents",), keys=("text", "clip_fea"), frames="time_dim_concat"
)
_FLUX = Record(blocks=("double_blocks", "single_blocks"), before=("text",), after=("ref_latents",))

#: Module and name of a class -> its record.
RECORDS = {
    "comfy.ldm.wan.model.WanModel": _WAN,
    "comfy.ldm.wan.model.VaceWanModel": _WAN,
    "comfy.ldm.wan.model.CameraWanModel": _WAN,
    "comfy.ldm.flux.model.Flux": _FLUX,
    "comfy.ldm.chroma.model.Chroma": _FLUX,
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": Record(
        blocks=("double_blocks", "single_blocks"), before=("ref_latent",), after=("text", "txt_byt5")
    ),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": Record(
        blocks=("transformer_blocks",), before=("text",), after=("ref_latents",)
    ),
    "comfy.ldm.lightricks.model.LTXVModel": Record(
        patch=(), blocks=("transformer_blocks",), keys=("text",), appended="keyframe_idxs"
    ),
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": Record(patch=("patch_temporal", "patch_spatial"), keys=("text",)),
    "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": Record(
        blocks=("joint_blocks",), before=("text",)
    ),
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": Record(
        patch=(), blocks=(), keys=("text",), levels=True
    ),
}

_COUNTED = ("text", "txt_byt5", "clip_fea")  # conditionings that are tokens already; the others are latents


@dataclass(frozen=True)
class Sequence:
    """The tokens of the self-attention of one model call.

    Args:
        layout: the grid and what stands before and after it.
        keys: lengths of the sequences that cross-attention of the call reads.
    """

    layout: TokenLayout
    keys: frozenset[int] = frozenset()

    @property
    def role(self) -> str:
        """The role of the attention in genkit's words."""
        return "joint" if self.layout.length > self.layout.grid_length else "self"


def record_of(model: Any) -> Record | str:
    """The record of a diffusion model, or the reason why it is not served."""
    cls = type(getattr(model, "_orig_mod", model))  # the model inside what torch.compile makes of it
    record = RECORDS.get(f"{cls.__module__}.{cls.__qualname__}")
    if record is None:
        known = ", ".join(name.rsplit(".", 1)[1] for name in RECORDS)
        return (
            f"where the tokens of a model of class {cls.__module__}.{cls.__qualname__} are is not known; known: {known}"
        )
    if record.levels and any(type(part).__name__ == "SpatialVideoTransformer" for part in model.modules()):
        return "video UNets are not served: their layers along time cannot be told from those within a frame"
    return record


def block_count(record: Record, model: Any) -> int:
    """How many blocks with self-attention a model has."""
    if record.levels:
        return sum(type(part).__name__ == "BasicTransformerBlock" for part in model.modules())
    return sum(len(getattr(model, name)) for name in record.blocks)


def sequence_of(record: Record, model: Any, x: Any, context: Any, conditions: Mapping[str, Any]) -> Sequence | str:
    """The sequence of a model call, or the reason why it is not known.

    Args:
        x: the latent, (B, C, H, W) or (B, C, T, H, W).
        context: the cross-attention conditioning, (B, N, C), or None.
        conditions: the other conditionings of the call by name.
    """
    if getattr(x, "ndim", 0) not in (4, 5):
        return "the latent is neither (B, C, H, W) nor (B, C, T, H, W)"
    patch = _patch(record, model)
    given = {name: value for name, value in {**conditions, "text": context}.items() if value is not None}
    grid = _grid(x, patch)
    if record.frames in given:
        grid = (grid[0] + _grid(given[record.frames], patch)[0], *grid[1:])
    tail: tuple[Segment, ...] = ()
    if record.appended in given:
        extra, frame = given[record.appended].shape[2], grid[1] * grid[2]
        if extra % frame or extra >= prod(grid):
            return f"{extra} tokens of {record.appended} are no whole frames of {frame} tokens"
        grid = (grid[0] - extra // frame, *grid[1:])
        tail = (Segment(record.appended, extra),)
    parts = [
        tuple(Segment(name, _length(name, given[name], patch)) for name in names if name in given)
        for names in (record.before, record.after)
    ]
    layout = TokenLayout(grid, (*parts[0], Segment("grid", prod(grid)), *parts[1], *tail))
    keys = frozenset(_length(name, given[name], patch) for name in record.keys if name in given)
    return Sequence(layout, keys)


def at_level(sequence: Sequence, options: Mapping[str, Any]) -> Sequence | str:
    """The sequence of the block of a UNet that runs now."""
    shape = options.get("activations_shape")
    if shape is None or len(shape) != 4:
        return "this ComfyUI does not tell the size of a UNet's feature map (activations_shape)"
    return Sequence(TokenLayout.of_grid(1, int(shape[2]), int(shape[3])), sequence.keys)


def _patch(record: Record, model: Any) -> tuple[int, int, int]:
    sizes = [getattr(model, name) for name in record.patch]
    if not sizes:
        return 1, 1, 1
    if len(sizes) == 2:
        return int(sizes[0]), int(sizes[1]), int(sizes[1])
    size = (sizes[0], sizes[0]) if isinstance(sizes[0], int) else tuple(map(int, sizes[0]))
    return size if len(size) == 3 else (1, *size)


def _grid(latent: Any, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along time, height and width; a rest is padded to a whole patch."""
    size = latent.shape[2:] if latent.ndim == 5 else (1, *latent.shape[2:])
    t, h, w = (-(-int(length) // step) for length, step in zip(size, patch, strict=True))
    return t, h, w


def _length(name: str, value: Any, patch: tuple[int, int, int]) -> int:
    """Tokens of a conditioning."""
    if name in _COUNTED:
        return int(value.shape[-2])
    latents = value if isinstance(value, (list, tuple)) else [value]
    return sum(prod(_grid(latent, patch)) for latent in latents)
