"""Whether a variant's outputs, as a set, look like the baseline's: what a distance of single outputs cannot tell.

A clip whose object moved elsewhere is far from the baseline's clip and may be as good. Over many prompts the two sets
of outputs can be compared instead, by features of a network: the kernel distance of Binkowski et al. (2018, "KID") with
their cubic kernel. Unlike Frechet distances it has no bias at few outputs: for two draws of one model it is 0 on
average. **Not** the published KID: the features are those of ST-LPIPS's AlexNet (:mod:`.perceptual`), not Inception's,
so its numbers compare variants of one comparison with each other and with another seed, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from genkit.evaluation.comparison.intervals import Interval, student_t
from genkit.evaluation.comparison.perceptual import features
from genkit.evaluation.metrics import as_unit

#: Different prompts from which a kernel distance is told.
LEAST = 8
#: Frames of a clip that are looked at, evenly spread: neighbours say the same.
FRAMES = 8
#: Distances are small; this is how they are usually told.
TIMES = 1000.0


def look_of(frames: np.ndarray) -> np.ndarray:
    """Features of one picture or clip, (256,): means over the map of AlexNet's last stage and up to 8 frames.

    Args:
        frames: (T, H, W, 3), uint8 or floats in [0, 1], at least 32 x 32.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int))
    batch = torch.from_numpy(as_unit(frames[chosen])).float() * 2 - 1
    with torch.no_grad():
        last = features("alex", batch.permute(0, 3, 1, 2).contiguous())[-1]
    return last.mean((0, 2, 3)).double().numpy()


def kernel_distance(mine: np.ndarray, its: np.ndarray, prompts: Sequence[str]) -> Interval | None:
    """Squared maximum mean discrepancy times 1,000 of two sets of outputs, with an interval over prompts.

    Args:
        mine, its: (N, C) features, row by row of the same prompt and seed.
        prompts: of each row. Only pairs of outputs of different prompts are compared, so that outputs of one prompt,
            which are alike whatever the set, take no part.

    Returns:
        The distance, 0 on average where both sets are drawn alike (it can fall below), with the interval of the
        jackknife over prompts; None for fewer than 8 different prompts.
    """
    names = sorted(set(prompts))
    if len(names) < LEAST:
        return None
    part = np.array([names.index(prompt) for prompt in prompts])
    crossed = _kernel(mine, its)
    pairs = _kernel(mine, mine) + _kernel(its, its) - crossed - crossed.T
    sums, counts = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    np.add.at(sums, (part[:, None], part[None, :]), pairs)
    np.add.at(counts, (part[:, None], part[None, :]), 1.0)
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(counts, 0.0)
    found = sums.sum() / counts.sum()
    left_out = (sums.sum() - 2 * sums.sum(1)) / (counts.sum() - 2 * counts.sum(1))
    size = len(names)
    error = math.sqrt((size - 1) / size * float(np.square(left_out - left_out.mean()).sum()))
    reach = student_t(size - 1) * error
    return Interval(TIMES * found, TIMES * (found - reach), TIMES * (found + reach), size)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
