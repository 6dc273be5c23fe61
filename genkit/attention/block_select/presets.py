"""Published settings by name, each with its source and with what differs here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: What settings are when neither the caller nor a preset gives them.
PLAIN: dict[str, Any] = {
    "score": "pooled",
    "block": 64,
    "across": None,
    "keep": 0.2,
    "top_p": None,
    "ranking": "own",
    "scope": "row",
    "least": 1,
    "most": 0.5,
    "sink": "none",
    "guard": None,
    "tail": None,
    "refresh": 1,
    "seed": 0,
    "samples": 8,
    "reduction": "mass",
    "stride": 8,
    "pairing": "aligned",
    "groups": 1,
    "agreement": 0.8,
    "fan_out": 8,
    "slack": 1.5,
    "rows": 1,
    "clusters": 32,
    "iterations": 4,
    "untrained": False,
}


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Args:
        settings: what differs from :data:`PLAIN`.
        source: where they come from.
        differs: from the source, in one sentence.
    """

    settings: dict[str, Any]
    source: str
    differs: str


PRESETS: dict[str, Preset] = {
    "xattention": Preset(
        {"score": "antidiagonal", "block": 128, "stride": 8, "top_p": 0.9, "most": 1.0},
        "XAttention, arXiv 2503.16428; its HunyuanVideo run",
        "blocks are boxes of the grid, so equal places of two cells are paired instead of opposite ones",
    ),
    "proxyattn": Preset(
        {"score": "proxy", "block": 128, "groups": 2, "ranking": "shared", "top_p": 0.9},
        "ProxyAttn: Guided Sparse Attention via Representative Heads",
        "groups come from the heads' pooled maps, a head that agrees with no group ranks for itself, "
        "and how many blocks a head needs is read from its own pooled map; the paper's code was not at hand",
    ),
    "hip": Preset(
        {"score": "tree", "block": 64, "keep": 8, "fan_out": 2, "slack": 2.0},
        "HiP Attention, arXiv 2406.09827: 512 keys per query block, ranges split in two",
        "a range is represented by its mean instead of its first block, and without causality there are neither a "
        "window nor a sink but the own block",
    ),
    "vsa": Preset(
        {"score": "pooled", "block": 64, "across": (4, 4), "keep": 0.2},
        "VSA, arXiv 2505.13389: the coarse stage's choice, sparsity 0.8",
        "the pooled output with its trained gate is left out, the own block is always kept, and border blocks are "
        "filled up from their neighbours instead of padded",
    ),
    "draft": Preset(
        {"score": "pooled", "block": 128, "across": (1, 8), "keep": 0.25, "scope": "head", "sink": "first_frame"},
        "DraftAttention, arXiv 2505.14708: windows of 8 x 16 in a frame, the best quarter of a whole head",
        "of the same frame only the own block is always kept, and blocks at the border are full",
    ),
    "asa": Preset(
        {
            "score": "sampled",
            "block": 128,
            "samples": 16,
            "reduction": "max",
            "top_p": 0.95,
            "least": 1,
            "most": 0.17,
            "tail": 32,
        },
        "Adaptive block-sparse attention with global tokens (BLADE), arXiv 2508.10774; its Wan 2.1 settings",
        "blocks are boxes of the grid instead of runs of a Gilbert curve, the own block is always kept, and only what "
        "is dropped is read as means, where BLADE's means cover kept tokens, too",
    ),
    "sparge": Preset(
        {"score": "pooled", "block": 128, "keep": 0.5, "guard": -0.1},
        "SpargeAttn, arXiv 2502.18137: the selection (top share 0.5, similarity above -0.1)",
        "query and key blocks are of one size, and products are neither quantised nor skipped inside the kernel",
    ),
    "svg": Preset(
        {"score": "offset", "block": 64, "keep": 0.3, "rows": 1, "sink": "first_frame"},
        "Sparse VideoGen, arXiv 2502.01776: a share of 0.3, sampled rows, the first frame",
        "the mass at every relative place decides instead of a choice between a spatial and a temporal mask",
    ),
    "svg2": Preset(
        {"score": "kmeans", "block": 64, "clusters": 64, "top_p": 0.9, "most": 0.9},
        "Sparse VideoGen2, arXiv 2505.18875: k-means of queries and keys per head, 90 % of the mass",
        "tokens sorted by cluster are cut into blocks of equal size, and every call clusters anew",
    ),
}
