"""Rules for token grids that many records share: they read a forward's arguments and say where tokens sit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genkit.errors import UnsupportedError
from genkit.families.base import MAIN, TEXT, Streams, grid_with, shape, text_length

#: Attribute of a tensor without storage that holds its values.
_VALUES = "genkit_values"


def latent_grid(
    family: str, axes: str = "BCTHW", argument: str = "hidden_states", patch: str = "patch_size", patch_t: str = ""
) -> Callable[[Any, Mapping[str, Any]], tuple[int, int, int]]:
    """A rule from (model, arguments) to the (T, H, W) grid of latents cut into patches.

    Args:
        family: name for messages.
        axes: order of the argument's axes; without a T there is one frame.
        argument: forward argument with the latents.
        patch: attribute of the configuration with the patch's size: one number (height and width) or three.
        patch_t: the same for time; "" = ``patch`` says it, or 1.
    """

    def rule(model: Any, args: Mapping[str, Any]) -> tuple[int, int, int]:
        sizes = dict(zip(axes, shape(args, argument, len(axes), family), strict=True))
        steps = getattr(model.config, patch) if patch else 1
        t, h, w = (1, steps, steps) if isinstance(steps, int) else (1, *steps) if len(steps) == 2 else steps
        if patch_t:
            t = getattr(model.config, patch_t) or 1
        return sizes.get("T", 1) // t, sizes["H"] // h, sizes["W"] // w

    return rule


def alone(rule: Callable[[Any, Mapping[str, Any]], tuple[int, int, int]]) -> Callable[..., Streams]:
    """Streams of a model whose grid attends among itself; text is asked in attention of its own."""
    return lambda model, args: {MAIN: grid_with(rule(model, args))}


def with_text(
    rule: Callable[[Any, Mapping[str, Any]], tuple[int, int, int]],
    family: str,
    first: bool = False,
    argument: str = "encoder_hidden_states",
) -> Callable[..., Streams]:
    """Streams of a model in which grid and text attend together, text before or after the grid."""

    def streams(model: Any, args: Mapping[str, Any]) -> Streams:
        text = ((TEXT, text_length(args, family, argument)),)
        return {MAIN: grid_with(rule(model, args), before=text if first else (), after=() if first else text)}

    return streams


def given(args: Mapping[str, Any], name: str, family: str) -> Any:
    """An argument that tells the grid; UnsupportedError when the call lacks it."""
    value = args.get(name)
    if value is None:
        raise UnsupportedError(f"{family}: the token grid follows from {name}, which this call of the model lacks")
    return value


# --- packed tokens with a position each, as Flux and its descendants take them -----------------------------------


def text_image_references(family: str, number: int = 0) -> Callable[..., Streams]:
    """Streams of joint attention over text, then the image that ``img_ids`` tell, then tokens of reference images.

    Args:
        family: name for messages.
        number: first coordinate of the image being made; references have others.
    """

    def streams(model: Any, args: Mapping[str, Any]) -> Streams:
        tokens = shape(args, "hidden_states", 3, family)[1]
        grid = grid_of_ids(given(args, "img_ids", family), number, family)
        text, references = (TEXT, text_length(args, family)), ("reference", tokens - grid[1] * grid[2])
        return {MAIN: grid_with(grid, before=(text,), after=(references,))}

    return streams


def with_values(make: Callable[[Any], Any], device: Any) -> Any:
    """``make(device)``, a tensor that depends on the device alone; without storage it carries its values along.

    Positions follow from sizes, and a grid is read from their values, also where memory is estimated on the meta
    device.
    """
    made = make(device)
    if made.is_meta:
        setattr(made, _VALUES, make("cpu"))
    return made


def grid_of_ids(ids: Any, number: int, family: str, name: str = "img_ids") -> tuple[int, int, int]:
    """The grid of the image being made, from positions (N, 3 or 4) or (B, N, 3 or 4): number of the image, row, column.

    Its tokens are those with ``number`` as their first coordinate. They come before all others, in raster order; their
    rows and columns may begin anywhere and be any distance apart.
    """
    ids = getattr(ids, _VALUES, ids)
    ids = (ids[0] if ids.ndim == 3 else ids).detach().float().cpu()
    image = ids[ids[:, 0] == number]
    if not len(image):
        raise UnsupportedError(f"{family}: no token in {name} has {number} as its first coordinate")
    (height, row), (width, column) = (_numbered(image[:, axis]) for axis in (1, 2))
    first = bool((ids[: len(image), 0] == number).all())
    if not first or height * width != len(image) or not bool(((row * width + column).diff() == 1).all()):
        raise UnsupportedError(
            f"{family}: {name} tell of {len(image)} tokens of the image within {height}x{width} positions; genkit "
            f"needs a full grid in raster order that comes before the reference tokens"
        )
    return 1, height, width


def _numbered(values: Any) -> tuple[int, Any]:
    """How many different values there are, and for each value its number among them."""
    different, number = values.unique(return_inverse=True)
    return len(different), number


# --- UNets: one stream per resolution level ----------------------------------------------------------------------


def unet_levels(count: int, height: int, width: int, round_up: bool = True) -> Streams:
    """Streams ``down0``, ``down1``, ..., ``mid``, ``up0``, ... of a UNet over images or single frames.

    Every level but the last halves both sides; going up mirrors going down.

    Args:
        count: number of levels.
        height, width: of the first level.
        round_up: whether half of an odd side is rounded up (a padded convolution) or down.
    """
    streams: Streams = {}
    for level in range(count):
        grid = grid_with((1, height, width))
        streams[f"down{level}"] = streams[f"up{count - 1 - level}"] = streams["mid"] = grid
        height, width = ((side + round_up) // 2 for side in (height, width))
    return streams
