"""Virtual inversion: denoising diffusion consistent models (DDCM), for every objective.

With ``x(b)`` the clean latents that the denoiser sees in branch ``b`` and ``z0`` the input's latents, a branch becomes
``z0 + x(b) - x(source)`` in every step: what the denoiser adds to the input when it reads the branch's prompt. For
epsilon models this is InfEdit's step, for flow models its flow-matching form (``x = z - t v``). The source itself
stays ``z0`` whatever noise is drawn, so nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from genkit.editing.shared.model import EditModel

Latents = dict[str, torch.Tensor]
SOURCE, TARGET, LAYOUT = "source", "target", "layout"


def consistent(model: EditModel, source: torch.Tensor, noisy: Latents, answers: Latents, level: float) -> Latents:
    """Clean latents of every branch.

    Args:
        model: whose objective says what answers mean.
        source: (1, ...) latents of the input.
        noisy: by role, at ``level``. answers: likewise.
    """
    seen = model.clean(noisy[SOURCE], answers[SOURCE], level)
    found = {SOURCE: source}
    for role in noisy:
        if role != SOURCE:
            found[role] = source + (model.clean(noisy[role], answers[role], level) - seen)
    return found


def renoised(
    model: EditModel,
    source: torch.Tensor,
    clean: Latents,
    noisy: Latents,
    answers: Latents,
    level: float,
    following: float,
    noise: torch.Tensor,
    eta: float = 1.0,
) -> Latents:
    """Every branch at the next level, with one noise for all.

    Args:
        clean: from :func:`consistent`, perhaps blended.
        noisy, answers, level: of the step that made it.
        following: the next level.
        noise: fresh, normal.
        eta: share of the variance that is fresh; 1 is DDCM. Below it the noise seen in the target, which explains the
            source exactly, is kept in all branches alike.
    """
    signal, spread = model.parts(following)
    kept = 0.0
    if eta < 1:
        now, wide = model.parts(level)
        exact = (noisy[SOURCE] - now * source) / wide
        seen = {role: model.noise(noisy[role], answers[role], level) for role in (SOURCE, TARGET)}
        kept = (spread**2 * (1 - eta)) ** 0.5 * (seen[TARGET] - seen[SOURCE] + exact)
    fresh = (spread**2 * eta) ** 0.5 * noise
    return {role: signal * latents + kept + fresh for role, latents in clean.items()}


def virtual_inversion(
    model: EditModel,
    source: torch.Tensor,
    predict: Callable[[Mapping[str, torch.Tensor], float, int, int], Latents],
    begins: Mapping[str, int],
    levels: tuple[float, ...],
    *,
    generator: torch.Generator | None = None,
    eta: float = 1.0,
    start: int = 0,
    blend: Callable[[Latents, int, int, float], Latents] | None = None,
    progress: Callable[[int, int, torch.Tensor], Any] | None = None,
) -> torch.Tensor:
    """The edited latents.

    Args:
        model: see :class:`genkit.editing.shared.EditModel`.
        source: (1, ...) latents of the input.
        predict: (latents by role, level, step, steps) -> answers by role; :class:`genkit.editing.shared.Branches`.
        begins: step from which each branch is computed, by role, "source" and "target" from 0; a branch that joins
            later is the source until then.
        levels: falling noise levels with 0 at the end.
        generator: of all noise.
        eta: see :func:`renoised`.
        start: steps that are skipped; above 0 the run begins with the noised input in place of noise alone.
        blend: (clean latents by role, step, steps, level) -> the same, changed; not called after the last step, whose
            result is decoded as it is.
        progress: called after every step with the clean target.
    """
    steps = len(levels) - 1
    noise = model.draw(source, generator)
    first = noise if start == 0 else model.noised(source, noise, levels[start])
    noisy = {SOURCE: first, TARGET: first}
    for index in range(start, steps):
        level, following = levels[index], levels[index + 1]
        noisy |= {role: noisy[SOURCE] for role, step in begins.items() if role not in noisy and index >= step}
        answers = predict(noisy, level, index, steps)
        clean = consistent(model, source, noisy, answers, level)
        made = clean[TARGET]
        if following > 0:
            if blend is not None:
                clean = blend(clean, index, steps, level)
            noise = model.draw(source, generator)
            noisy = renoised(model, source, clean, noisy, answers, level, following, noise, eta)
        if progress is not None:
            progress(index + 1 - start, steps - start, made)
    return made
