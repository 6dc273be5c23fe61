"""A sampling step whose randomness depends on the place: ancestral where the edit is, deterministic elsewhere."""

from __future__ import annotations

import torch


def calibrated(clean: torch.Tensor, source: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Clean latents, moved by what the source's prediction misses of the known source.

    Args:
        clean: (R, C, ...) predicted clean latents of some rows.
        source: (1, C, ...) the one of the source row.
        given: (1, C, ...) the source's known clean latents.
    """
    return clean + (given - source)


def table_step(
    noisy: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    here: float,
    there: float,
    region: torch.Tensor | float,
    eta: float = 1.0,
) -> torch.Tensor:
    """A DDIM step with variance ``eta`` inside ``region`` and none outside.

    Args:
        noisy: (R, C, h, w) latents at the kept signal power ``here`` (``alphas_cumprod``).
        clean: (R, C, h, w) calibrated clean latents.
        noise: (1, C, h, w) fresh noise; one draw for all rows, else the source and the target drift apart.
        here, there: kept signal power before and after the step.
        region: (1, 1, h, w) in 0..1, or a number for everywhere.
        eta: variance inside the region, as DDIM's.

    Returns:
        (R, C, h, w) at ``there``.

    Source: ViMAEdit, spatially adaptive variance-guided sampling.
    """
    spread = eta * ((1 - there) / (1 - here) * max(0.0, 1 - here / there)) ** 0.5
    sigma = spread * torch.as_tensor(region, dtype=noisy.dtype, device=noisy.device)
    away = ((1 - there - sigma.square()).clamp_min(0) / (1 - here)).sqrt()
    return (there**0.5 - here**0.5 * away) * clean + away * noisy + sigma * noise


def flow_step(
    noisy: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    here: float,
    there: float,
    region: torch.Tensor | float,
    eta: float = 1.0,
) -> torch.Tensor:
    """The same for a flow: an Euler step outside ``region``, inside it noise in part drawn anew.

    Args:
        here, there: sigma before and after the step.
        region, eta: their product is the share of the noise that is fresh.
        noisy, clean, noise: see :func:`table_step`.

    The noise in ``noisy`` and the fresh one are mixed so that their variance stays that of ``there``.
    """
    share = (eta * torch.as_tensor(region, dtype=noisy.dtype, device=noisy.device)).clamp(0, 1)
    old = (noisy - (1 - here) * clean) / here
    return (1 - there) * clean + there * ((1 - share.square()).sqrt() * old + share * noise)
