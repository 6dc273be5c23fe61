"""The inputs of linear attention after checks, in the precision of the sums."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """q, k (B, N, H, D) and v (B, N, H, Dv) with everything that shapes the sums; see the api for each field."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_den: Tensor | None
    k_den: Tensor | None
    key_weight: Tensor | None
    value_weight: Tensor | None
    decay: Tensor | None
    mode: str
    group: int | None
    softmax: bool
    eps: float

    @property
    def steps(self) -> int:
        """Groups in modes frame and chunk, tokens in mode token, 1 in mode all."""
        n = self.q.shape[1]
        return 1 if self.mode == "all" else n if self.mode == "token" else -(-n // self.group)
