"""Isolation attention: tokens of one subject do not see those of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def isolated(subjects: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which pairs of tokens may see each other.

    Args:
        subjects: bool (N,) tokens of every subject, disjoint.

    Returns:
        bool (N, N), rows are queries: False between tokens of two different subjects. What belongs to no subject sees
        and is seen by everything, so no row is empty.
    """
    owner = torch.zeros(subjects[0].shape, dtype=torch.long, device=subjects[0].device)
    for number, tokens in enumerate(subjects, 1):
        owner = torch.where(tokens, number, owner)
    return (owner[:, None] == owner) | (owner[:, None] == 0) | (owner == 0)
