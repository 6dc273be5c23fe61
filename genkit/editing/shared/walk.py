"""Steps from one noise level to another, up or down, for every objective: DDIM, Euler of flow models, fresh noise."""

from __future__ import annotations

import torch

from genkit.editing.shared.model import EditModel


def step(
    model: EditModel,
    noisy: torch.Tensor,
    answer: torch.Tensor,
    level: float,
    following: float,
    *,
    eta: float = 0.0,
    fresh: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents at the level ``following``: the clean latents that an answer stands for, with the noise that it does.

    Of epsilon and v models this is DDIM (Song et al. 2020), of flow models Euler's step; upwards it is their inversion.

    Args:
        noisy, answer: (B, ...) at ``level``.
        eta: share of DDIM's standard deviation that is fresh: ``eta**2`` of the variance that leads from one level to
            the next of a diffusion; of flow models of all noise. 0 draws nothing.
        fresh: normal noise for ``eta`` above 0.
    """
    clean = model.clean(noisy, answer, level)
    noise = model.noise(noisy, answer, level)
    signal, spread = model.parts(following)
    if not eta or following <= 0 or fresh is None:
        return signal * clean + spread * noise
    part = eta * spread
    if not model.flow:
        now, wide = model.parts(level)
        part = eta * (spread / wide) * max(1 - (now / signal) ** 2, 0.0) ** 0.5
    return signal * clean + max(spread**2 - part**2, 0.0) ** 0.5 * noise + part * fresh


#: Share of the steps, from the first on, that resampling takes several times: later ones only sharpen.
_RESAMPLED = 0.9


def walked(steps: int, resample: int) -> tuple[tuple[int, bool], ...]:
    """Steps in the order they are taken, and whether each is taken again (RePaint with jumps of one step).

    Args:
        steps: of the run; the last one is taken once.
        resample: how often each is taken.
    """
    found = []
    for index in range(steps):
        times = resample if index < _RESAMPLED * steps and index < steps - 1 else 1
        found += [(index, turn < times - 1) for turn in range(times)]
    return tuple(found)


def noisier(model: EditModel, latents: torch.Tensor, level: float, higher: float, noise: torch.Tensor) -> torch.Tensor:
    """Latents of a level at a higher one, as the diffusion itself leads there: weaker, with fresh noise added.

    Args:
        latents: (B, ...) at ``level``. noise: normal, of the same shape.
    """
    (signal, spread), (weaker, wider) = model.parts(level), model.parts(higher)
    factor = weaker / signal
    return factor * latents + max(wider**2 - (factor * spread) ** 2, 0.0) ** 0.5 * noise
