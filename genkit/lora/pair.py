"""The two halves that make the change of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError

if TYPE_CHECKING:
    import torch


@dataclass
class Pair:
    """The change of one module's weight: B A, times :attr:`scale`.

    Both halves are there but while a file is being read.

    Args:
        down: A, (rank, in) or (rank, in, kh, kw).
        up: B, (out, rank) or (out, rank, 1, 1).
        bias: (out,), added to the module's; times the scale too.
        alpha: the scale times the rank; None is the rank.
        magnitude: (out,), the length of every row of the changed weight (DoRA).
    """

    down: torch.Tensor = None  # type: ignore[assignment]
    up: torch.Tensor = None  # type: ignore[assignment]
    bias: torch.Tensor | None = None
    alpha: float | None = None
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def folded(self) -> Pair:
        """The same change with a scale of one: it is multiplied into B, and into the bias."""
        scale = self.scale
        plain: dict[str, Any] = {name: _detached(getattr(self, name)) for name in ("down", "up", "bias", "magnitude")}
        if scale != 1:
            for name in ("up", "bias"):
                value = plain[name]
                plain[name] = None if value is None else (value.double() * scale).to(value.dtype)
        return Pair(alpha=None, **plain)

    def to(self, dtype: torch.dtype) -> Pair:
        """The same in another precision; alpha is a number and stays."""
        values = {name: getattr(self, name) for name in ("down", "up", "bias", "magnitude")}
        values = {name: None if value is None else value.to(dtype) for name, value in values.items()}
        return Pair(alpha=self.alpha, **values)

    def check_finite(self, name: str) -> None:
        """ArtifactError for NaN and infinities; ``name`` is the module in the message."""
        for part in ("down", "up", "bias", "magnitude"):
            value = getattr(self, part)
            if value is not None and not bool(value.isfinite().all()):
                raise ArtifactError(
                    f"{name} holds NaN or infinite weights: it was trained until it broke, or is damaged"
                )


def _detached(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.detach().cpu()
