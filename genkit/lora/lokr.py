"""LoKr as the LoRA that is equal to it: a Kronecker product with a low-rank factor has low rank itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

from genkit.errors import UnsupportedError
from genkit.lora.pair import Pair

if TYPE_CHECKING:
    import torch

Factor: TypeAlias = Union["torch.Tensor", tuple["torch.Tensor", "torch.Tensor"]]


def pair_of_lokr(first: Factor, second: Factor, scale: float = 1.0) -> Pair:
    """The halves of ``scale * kron(W1, W2)``.

    ``kron(W1, a b) = kron(I, a) kron(W1, b) = kron(W1, a) kron(I, b)``: exact up to the rounding of the products.

    Args:
        first: W1 (l, m), or its halves (l, r) and (r, m).
        second: W2 (k, n) as its halves (k, r) and (r, n).
        scale: alpha / rank as LoKr was trained with.

    Returns:
        A of (min(l, m) r, m n) and B of (l k, min(l, m) r); with halves of W1, r times r in place of min(l, m) r.

    Raises:
        UnsupportedError: a whole W2, whose product has full rank.
    """
    import torch

    if not isinstance(second, tuple):
        raise UnsupportedError(
            f"LoKr whose second factor is a whole matrix {tuple(second.shape)} has full rank, so no LoRA is equal to "
            "it; train it with a rank below half of the factor's sides"
        )
    up, down = second
    if isinstance(first, tuple):
        return Pair(down=torch.kron(first[1], down), up=torch.kron(first[0], up) * scale)
    rows, columns = first.shape
    if rows <= columns:
        one = torch.eye(rows, dtype=up.dtype, device=up.device)
        return Pair(down=torch.kron(first, down), up=torch.kron(one, up) * scale)
    one = torch.eye(columns, dtype=up.dtype, device=up.device)
    return Pair(down=torch.kron(one, down), up=torch.kron(first, up) * scale)
