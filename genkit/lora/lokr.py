"""LoKr as the LoRA that is equal to it: a Kronecker product with a low-rank factor has low rank itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias, Union

from genkit.errors import ArtifactError, UnsupportedError
from genkit.lora.keys import LOKR, short
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


def lora_of_lokr(
    tensors: Mapping[str, torch.Tensor], alpha_of: Callable[[str, int], float | None], name: str
) -> dict[str, torch.Tensor]:
    """A file's tensors with the LoRA that is equal to them in place of LoKr; others stay.

    Args:
        tensors: under names as peft or LyCORIS writes them, the factors checked by
            :func:`genkit.lora.keys.check_names`.
        alpha_of: (module, rank) -> the alpha of a module that has none among the tensors; None where it is not known.
        name: of the file, for messages.

    Returns:
        ``MODULE.lora_A.weight`` and ``MODULE.lora_B.weight``, the scale alpha / rank multiplied into B.

    Raises:
        ArtifactError: factors that do not fit each other, or a scale that is not told.
    """
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        found = LOKR.fullmatch(key)
        if found:
            modules.setdefault(found["module"], {})[found["factor"]] = value.float()
    if not modules:
        return dict(tensors)
    done = {f"{module}.alpha" for module in modules}
    rest = {key: value for key, value in tensors.items() if key not in done and not LOKR.fullmatch(key)}
    for module, parts in modules.items():
        second = (parts["w2_a"], parts["w2_b"])
        first: Factor = parts["w1"] if "w1" in parts else (parts["w1_a"], parts["w1_b"])
        halves = [second, first] if isinstance(first, tuple) else [second]
        flat = all(value.ndim == 2 and value.numel() for value in parts.values())
        if not flat or any(one.shape[1] != two.shape[0] for one, two in halves):
            shapes = ", ".join(f"{factor} {tuple(value.shape)}" for factor, value in sorted(parts.items()))
            raise ArtifactError(f"{name}: the factors of {short(module)} do not fit each other: {shapes}")
        rank = second[0].shape[1]
        given = tensors.get(f"{module}.alpha")
        alpha = alpha_of(module, rank) if given is None else float(given.flatten()[0])
        if alpha is None:
            raise ArtifactError(
                f"{name} holds LoKr and does not tell its alpha; keep the adapter_config.json that was written "
                "beside it"
            )
        pair = pair_of_lokr(first, second, alpha / rank)
        rest |= {f"{module}.lora_A.weight": pair.down, f"{module}.lora_B.weight": pair.up}
    return rest
