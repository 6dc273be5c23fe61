"""How wrong a kernel may be: no more than plain low-precision torch against float64, times a small factor, plus a few
roundings of the terms that are summed (softmax gradients cancel, so a result can be far smaller than its terms)."""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 2.0  # allowed multiple of the eager error
ROUNDINGS = 3.0  # plus this many roundings of the largest sum of absolute terms


def limit(exact: Tensor, eager: Tensor, terms: Tensor | None = None) -> float:
    """Largest allowed absolute error of a result.

    Args:
        exact: its value in float64. eager: its plain computation in the low precision.
        terms: the same sums over absolute values, in float64; None = the result itself. Infinite entries do not count.
    """
    finite = exact.isfinite()
    if not bool(finite.any()):
        return 0.0
    error = (eager.double() - exact)[finite].abs().max().item()
    size = (exact if terms is None else terms)[finite].abs().max().item()
    return FACTOR * error + ROUNDINGS * torch.finfo(eager.dtype).eps * max(size, 1e-3)


def assert_close(found: Tensor, exact: Tensor, eager: Tensor, what: str, terms: Tensor | None = None) -> None:
    """Fail when ``found`` is farther from ``exact`` than :func:`limit` allows, or not finite where it should be."""
    assert found.shape == exact.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(exact.shape)}"
    finite = exact.isfinite()
    assert torch.equal(found.isfinite(), finite), f"{what}: wrong entries are not finite"
    assert torch.equal(found[~finite].double(), exact[~finite]), f"{what}: wrong infinities"
    if bool(finite.any()):
        error = (found.double() - exact)[finite].abs().max().item()
        allowed = limit(exact, eager, terms)
        assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"
