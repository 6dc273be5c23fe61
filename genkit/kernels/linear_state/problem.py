"""The inputs of linear attention after checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: The fields that are tensors, in the order of the operator's arguments.
TENSORS = ("q", "k", "v", "q_den", "k_den", "key_weight", "value_weight", "decay")

#: The others.
FORM = ("mode", "group", "softmax", "eps")


@dataclass(frozen=True, eq=False)
class Features:
    """q (B, Nq, H, D), k (B, N, H, D) and v (B, N, H, Dv) with everything that shapes the sums; see the api.

    Tensors are as they came; sums are made in ``wide``.
    """

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
    def wide(self) -> torch.dtype:
        """The precision of the sums."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    @property
    def steps(self) -> int:
        """Groups in modes frame and chunk, tokens in mode token, 1 in mode all."""
        n = self.k.shape[1]
        return 1 if self.mode == "all" else n if self.mode == "token" else -(-n // (self.group or n))

    @property
    def owners(self) -> dict[str, str]:
        """Input -> the input whose tensor it is: features of the denominator may be those of the numerator.

        Their gradients nearly cancel, so they are added before they are rounded to the dtype of the input.
        """
        own = {name: name for name in TENSORS}
        return own | {f"{x}_den": x for x in "qk" if getattr(self, f"{x}_den") is getattr(self, x)}

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The inputs in the order of ``TENSORS``, each tensor once."""
        owners = self.owners
        return tuple(getattr(self, name) if owners[name] == name else None for name in TENSORS)

    @classmethod
    def again(cls, tensors: Sequence[Tensor | None], owners: Mapping[str, str], *form: Any) -> Features:
        """What :meth:`tensors` and :attr:`owners` were taken from; ``form`` are the fields that are no tensors."""
        found: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
        return cls(**{name: found[owners[name]] for name in TENSORS}, **dict(zip(FORM, form, strict=True)))

    @property
    def form(self) -> tuple[Any, ...]:
        """The fields that are no tensors."""
        return self.mode, self.group, self.softmax, self.eps

    def widened(self) -> Features:
        """The same with every tensor in the precision of the sums."""
        wholes = {name: getattr(self, name) for name in TENSORS}
        wide: dict[str, Any] = {n: None if x is None else x.to(self.wide) for n, x in wholes.items()}
        return dataclasses.replace(self, **wide)
