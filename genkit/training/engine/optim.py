"""Muon for weight matrices and convolutions, AdamW for everything else, as one optimizer.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by its nearest semi-orthogonal matrix, found with five
Newton-Schulz iterations. torch ships a Muon for 2-D parameters only; this one flattens convolution kernels to
(out, in * taps), which is what makes the small video autoencoder train in a quarter of AdamW's steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from genkit.training.engine.shards import gathered, like

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def has_fast_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are quick here: any accelerator, or a processor with tiles for them (AMX)."""
    return torch.accelerator.is_available() or torch.cpu._is_amx_tile_supported()


@torch.no_grad()
def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate the semi-orthogonal factor of a 2-D matrix by a quintic Newton-Schulz iteration.

    The singular values of the result lie in about 0.7..1.2, which is all Muon needs. Products are taken in the type of
    the matrix; bfloat16 blurs the directions by a tenth, float32 by a hundredth.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def _orthogonalise_quick(matrix: torch.Tensor) -> torch.Tensor:
    """In bfloat16, as Muon's authors do, where that is quick."""
    if not has_fast_bfloat16():
        return orthogonalise(matrix)
    return orthogonalise(matrix.bfloat16()).to(matrix.dtype)


def _orthogonalise_shared(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalise every matrix; the processes of a distributed run, whose gradients are equal, each do a part."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1 or not matrices:
        return [_orthogonalise_quick(matrix) for matrix in matrices]
    load = [0] * world
    owner = {}
    for index in sorted(range(len(matrices)), key=lambda i: -matrices[i].numel() * min(matrices[i].shape)):
        owner[index] = load.index(min(load))
        load[owner[index]] += matrices[index].numel() * min(matrices[index].shape)
    flat = torch.zeros(sum(matrix.numel() for matrix in matrices), device=matrices[0].device)
    parts = flat.split([matrix.numel() for matrix in matrices])
    for index, (matrix, part) in enumerate(zip(matrices, parts, strict=True)):
        if owner[index] == dist.get_rank():
            part.copy_(_orthogonalise_quick(matrix).flatten())
    dist.all_reduce(flat)
    return [part.view_as(matrix) for matrix, part in zip(matrices, parts, strict=True)]


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over two kinds of parameter groups, told apart by the group's ``muon`` flag.

    Args:
        matrices: parameters with at least two dimensions, updated by Muon with RMS-matched step size
            ``0.2 * sqrt(max(rows, columns)) * lr``, so that one learning rate serves both kinds.
        others: parameters updated by AdamW.
        lr: base learning rate of both kinds.
        weight_decay: decoupled decay of the matrices; the others get none.
        momentum: Nesterov momentum of Muon.
        betas: AdamW's averaging constants.
        faster: parameters for AdamW with a multiple of the learning rate, as (factor, parameters).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        faster: Iterable[tuple[float, Iterable[nn.Parameter]]] = (),
    ):
        adamw = {"muon": False, "betas": betas, "weight_decay": 0.0}
        groups = [
            {"params": list(matrices), "muon": True, "momentum": momentum, "weight_decay": weight_decay, "factor": 1.0},
            {"params": list(others), **adamw, "factor": 1.0},
            *({"params": list(part), **adamw, "factor": factor} for factor, part in faster),
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(present, group)
            else:
                for parameter in present:
                    self._adamw(parameter, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict) -> None:
        averaged = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter.grad)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            # Of a matrix in shards (FSDP2) every process sees the whole: its singular values are no shard's.
            averaged.append(gathered(parameter.grad.lerp(state["momentum"], group["momentum"])).flatten(1))
        for parameter, direction in zip(parameters, _orthogonalise_shared(averaged), strict=True):
            scale = 0.2 * max(direction.shape) ** 0.5
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            step = like(direction.view(parameter.shape), parameter)
            parameter.add_(step, alpha=-group["lr"] * scale)

    def _adamw(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        corrected = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["mean"], corrected, value=-group["lr"] / (1 - beta1 ** state["step"]))


def muon_adamw(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    adam_names: tuple[str, ...] = (),
    factors: Mapping[str, float] | None = None,
    **options,
) -> MuonAdamW:
    """Sort named parameters into Muon's and AdamW's.

    Args:
        named: pairs as from ``model.named_parameters()``.
        lr: learning rate.
        adam_names: parts of names that go to AdamW although they are matrices (embeddings, first and last layers).
        factors: part of a name -> multiple of the learning rate; these go to AdamW.
        options: passed on to :class:`MuonAdamW`.
    """
    matrices, others, quick = [], [], {part: [] for part in factors or {}}
    for name, parameter in named:
        own = next((part for part in quick if part in name), None)
        if parameter.requires_grad and own is not None:
            quick[own].append(parameter)
        elif parameter.requires_grad:
            wants_adam = (
                parameter.ndim < 2 or min(parameter.flatten(1).shape) < 2 or any(part in name for part in adam_names)
            )
            (others if wants_adam else matrices).append(parameter)
    faster = [(factor, quick[part]) for part, factor in (factors or {}).items()]
    return MuonAdamW(matrices, others, lr=lr, faster=faster, **options)
