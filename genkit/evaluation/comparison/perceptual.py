"""Perceptual distance without a network: the AlexNet and VGG-16 of ST-LPIPS, whose weights lie in a package.

The weights are those of the shift-tolerant LPIPS of Ghildyal and Liu (ECCV 2022, package ``stlpips-pytorch``): networks
trained on ImageNet with pooling that blurs first, and linear heads fitted to human judgements. **Not** the LPIPS of
Zhang et al. (2018), whose numbers differ: the name is ``st_lpips`` everywhere. Only the weight files are read; the
package's code, which needs torchvision and IPython, is never imported.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from genkit.errors import ArtifactError, UnsupportedError, UsageError, explain
from genkit.evaluation.metrics import as_unit

PACKAGE = "stlpips_pytorch"
NETS = ("alex", "vgg")
#: Convolutions of each stage by their number in the file, and the blur that stands before (or, in the first stage of
#: AlexNet, behind) them; the kernel of the max-pooling before the blur.
_STAGES = {
    "alex": ((1, (0,)), (4, (5,)), (8, (9,)), (None, (11,)), (None, (13,))),
    "vgg": ((None, (0, 2)), (5, (6, 8)), (11, (12, 14, 16)), (19, (20, 22, 24)), (27, (28, 30, 32))),
}
_POOL = {"alex": 3, "vgg": 2}
_PADDING = {11: 2, 5: 2, 3: 1}
_EPS = 1e-10
#: Frames that go through the network at once.
BATCH = 8
#: The smallest frame that leaves something to compare in the last stage.
LEAST = 32


def why_not() -> str | None:
    """Why there is no perceptual distance here; None when there is."""
    if importlib.util.find_spec(PACKAGE) is None:
        return (
            "the package stlpips-pytorch is not installed: pip install 'genkit[metrics]' (64 MB, no further packages)"
        )
    return None


def _file(net: str) -> Path:
    found = importlib.util.find_spec(PACKAGE)
    places = [] if found is None else list(found.submodule_search_locations or ())
    if not places:
        raise UnsupportedError(f"st_lpips: {why_not()}")
    return Path(places[0]) / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"


@cache
def weights(net: str) -> dict[str, torch.Tensor]:
    """The tensors of a network's file.

    Raises:
        UsageError: an unknown network. UnsupportedError: the package is missing. ArtifactError: its file is broken.
    """
    if net not in NETS:
        raise UsageError(explain("net of st_lpips", net, NETS))
    path = _file(net)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle raises
        raise ArtifactError(f"cannot read {path.name} of stlpips-pytorch: install the package again") from error


def _blur(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Every second point of a blurred map, its border mirrored by two points."""
    padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(padded, kernel, stride=2, groups=x.shape[1])


def features(net: str, frames: torch.Tensor) -> list[torch.Tensor]:
    """Maps after each of the five stages, of frames (B, 3, H, W) in [-1, 1]."""
    found = weights(net)
    x = (frames - found["scaling_layer.shift"]) / found["scaling_layer.scale"]
    maps = []
    for number, (blur, layers) in enumerate(_STAGES[net], 1):
        name = f"net.slice{number}"
        kernel = None if blur is None else found[f"{name}.{blur}.filt"]
        if kernel is not None and number > 1:
            x = _blur(functional.max_pool2d(x, _POOL[net], 1), kernel)
        for layer in layers:
            weight, bias = found[f"{name}.{layer}.weight"], found[f"{name}.{layer}.bias"]
            x = functional.conv2d(x, weight, bias, padding=_PADDING[weight.shape[-1]])
            if kernel is not None and number == 1:
                x = _blur(x, kernel)
            x = functional.relu(x)
        maps.append(x)
    return maps


def st_lpips_frames(a: np.ndarray, b: np.ndarray, net: str = "alex") -> np.ndarray:
    """ST-LPIPS of every pair of frames, (T,): 0 for equal ones, larger for those that people find further apart.

    Args:
        a, b: clips (T, H, W, 3), uint8 or floats in [0, 1], of equal shape; at least 32 x 32.
        net: ``"alex"`` or ``"vgg"`` (about ten times the work).

    Raises:
        UsageError: shapes. UnsupportedError: the package is missing.

    Cost: 25 frames of 128 x 128 take about a second on one core with ``alex``.
    """
    first, second = as_unit(a, "first clip"), as_unit(b, "second clip")
    if first.shape != second.shape or first.shape[-1] != 3 or min(first.shape[1:3]) < LEAST:
        raise UsageError(
            f"st_lpips needs two clips (T, H, W, 3) of equal shape, {LEAST}x{LEAST} or larger; got {first.shape}, "
            f"{second.shape}"
        )
    found = weights(net)
    heads: list[Any] = [found[f"lin{number}.model.1.weight"] for number in range(5)]
    values = []
    with torch.no_grad():
        for start in range(0, len(first), BATCH):
            pair = [torch.from_numpy(clip[start : start + BATCH]).float() * 2 - 1 for clip in (first, second)]
            both = features(net, torch.cat(pair).permute(0, 3, 1, 2).contiguous())
            total = torch.zeros(len(pair[0]))
            for head, maps in zip(heads, both, strict=True):
                one, other = (maps / (maps.square().sum(1, keepdim=True).sqrt() + _EPS)).chunk(2)
                total += functional.conv2d((one - other).square(), head).mean((1, 2, 3))
            values.append(total)
    return torch.cat(values).double().numpy()
