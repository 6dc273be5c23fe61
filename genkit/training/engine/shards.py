"""Tensors in shards (FSDP2): the whole of one, and the shards of a whole. Plain tensors pass through."""

from __future__ import annotations

import torch


def gathered(value: torch.Tensor) -> torch.Tensor:
    """The whole tensor on every process; a collective operation for one in shards."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on every process, on the device of another and cut into shards as that one is."""
    value = value.to(model.device)
    if not hasattr(model, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = model.device_mesh
    # Every process has the whole: it keeps its own part, nothing is sent.
    copies = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(mesh, model.placements)
