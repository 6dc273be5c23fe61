"""What is asked of a tuned schedule, such as ``psnr>=30``, ``st_lpips<=0.05``, ``judge>=0.9`` or ``speedup>=1.8``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError, explain

#: Metric -> what it counts, and the range of values that can be asked for.
METRICS = {
    "psnr": ("PSNR in dB to the dense run of the same seed, mean over frames", (0.0, 99.0)),
    "ssim": ("SSIM to the dense run of the same seed, mean over frames and channels", (0.0, 0.9999)),
    "st_lpips": (
        "perceptual distance ST-LPIPS (AlexNet) to the dense run of the same seed, mean over frames",
        (0.0, 10.0),
    ),
    "judge": ("share of prompts whose clip the toy world's judge finds right in everything", (0.0, 1.0)),
    "speedup": ("dense over executed operations of the layers that can be patched, of whole runs", (1.0, 1000.0)),
}
#: Metrics of which less is better: a budget is the most they may be.
LOWER = frozenset({"st_lpips"})
FORM = "METRIC>=NUMBER, for instance psnr>=30, or st_lpips<=NUMBER; metrics: psnr, ssim, st_lpips, judge, speedup"
#: How sure of the held-out prompts the choice on the calibration prompts must be: standard errors of the difference.
SURE = 1.3


@dataclass(frozen=True)
class Budget:
    """A number that a metric must reach, or must not exceed, as a mean over prompts.

    Args:
        metric: a key of :data:`METRICS`. limit: the number.
    """

    metric: str
    limit: float

    @classmethod
    def of(cls, text: str) -> Budget:
        """Read ``"psnr>=30"``.

        Raises:
            UsageError: another form, an unknown metric, the wrong side of one, or a number out of its range.
        """
        found = re.fullmatch(r"\s*([A-Za-z_]+)\s*([<>]=)\s*(\S+)\s*", text)
        if found is None:
            raise UsageError(explain("--budget", text, FORM))
        name, relation, number = found[1].lower(), found[2], found[3]
        if name not in METRICS:
            raise UsageError(explain("metric of --budget", name, METRICS))
        if relation != _relation(name):
            better = "less" if name in LOWER else "more"
            raise UsageError(
                explain("--budget", text, f"{name}{_relation(name)}{number}: {better} of {name} is better")
            )
        try:
            value = float(number)
        except ValueError:
            raise UsageError(explain("--budget", text, FORM)) from None
        low, high = METRICS[name][1]
        if not low <= value <= high:
            raise UsageError(explain(f"number of --budget {name}", number, f"from {low:g} to {high:g}"))
        return cls(name, value)

    @property
    def fast(self) -> bool:
        """Whether it asks for speed; the most faithful plan that has it is then wanted, else the fastest one."""
        return self.metric == "speedup"

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return sign_of(self.metric)

    def met(self, values: Sequence[float]) -> bool:
        """Whether the mean over prompts keeps to the number."""
        return self.sign * (float(np.mean(values)) - self.limit) >= 0

    def surely_met(self, values: Sequence[float], further: int, typical: float = 0.0) -> bool:
        """Whether the mean over ``further`` other prompts is likely to keep to it: by :data:`SURE` standard errors of
        the difference of the two means. Of one prompt no spread is known: then as :meth:`met`.

        Args:
            typical: spread over prompts (standard deviation) of other plans; of few prompts a plan's own may be small
                by chance, and the larger of the two counts.

        Speed hardly depends on the prompt and is taken as it is.
        """
        if self.fast or len(values) < 2:
            return self.met(values)
        spread = max(float(np.std(values, ddof=1)), typical) * math.sqrt(1 / len(values) + 1 / further)
        return self.sign * (float(np.mean(values)) - self.limit) - SURE * spread >= 0

    def __str__(self) -> str:
        return f"{self.metric}{_relation(self.metric)}{self.limit:g}"


def sign_of(metric: str) -> int:
    """1 where more of a metric is better, -1 where less is."""
    return -1 if metric in LOWER else 1


def _relation(metric: str) -> str:
    return "<=" if metric in LOWER else ">="
