"""FlowEdit: from the input to the edit along the difference of two velocities, without inversion.

Source: FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models (Kulikov et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from genkit.editing.shared.model import EditModel

SOURCE, TARGET = "source", "target"


def flow_edit(
    model: EditModel,
    source: torch.Tensor,
    predict: Callable[[Mapping[str, torch.Tensor], float, int, int], dict[str, torch.Tensor]],
    levels: tuple[float, ...],
    *,
    start: int = 0,
    plain: int = 0,
    draws: int = 1,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int, torch.Tensor], Any] | None = None,
) -> torch.Tensor:
    """The edited latents.

    At each level ``t`` with fresh noise ``n``: ``z_s = (1 - t) x + t n``, ``z_t = z + z_s - x`` and
    ``z += (t' - t) (v(z_t, target) - v(z_s, source))``.

    Args:
        model: of a flow family.
        source: (1, ...) latents ``x`` of the input.
        predict: (latents by role, level, step, steps) -> velocities by role.
        levels: falling noise levels with 0 at the end.
        start: steps that are skipped: the more, the closer the edit stays to the input.
        plain: last steps that follow the target's velocity alone (Euler): freer, less like the input.
        draws: draws of noise whose differences are averaged in a step; each costs as much as a step.
        generator: of all noise.
        progress: called after every step with the edit as it stands.
    """
    steps = len(levels) - 1
    edited, free = source, None
    for index in range(start, steps):
        level, following = levels[index], levels[index + 1]
        if index < steps - plain:
            change = torch.zeros_like(source)
            for _ in range(draws):
                noisy = model.noised(source, model.draw(source, generator), level)
                answers = predict({SOURCE: noisy, TARGET: edited + (noisy - source)}, level, index, steps)
                change += (answers[TARGET] - answers[SOURCE]) / draws
            edited = edited + (following - level) * change
            made = edited
        else:
            if free is None:
                free = edited + (model.noised(source, model.draw(source, generator), level) - source)
            # The source is asked too: it costs a row and keeps one form of call; its answer is not used.
            answers = predict({SOURCE: free, TARGET: free}, level, index, steps)
            made = model.clean(free, answers[TARGET], level)
            free = free + (following - level) * answers[TARGET]
        if progress is not None:
            progress(index + 1 - start, steps - start, made)
    return edited if free is None else free
