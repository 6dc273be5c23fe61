"""What settings say of a LoRA's strength by layer and by step, as objects."""

from __future__ import annotations

from genkit.errors import UsageError, explain
from genkit.lora.load import Share
from genkit.lora.strengths import StepFactors
from genkit.pipelines.request import flag
from genkit.pipelines.settings import LoadSettings
from genkit.pipelines.text import parse_pairs
from genkit.schema import number


def check_lora_asked(settings: LoadSettings, files: bool) -> None:
    """Refuse what says how a LoRA is loaded where there is none.

    Args:
        settings: of the run. files: whether it has a LoRA.

    Raises:
        UsageError: such a setting without a LoRA and without a router.
    """
    if files or settings.lora_router is not None:
        return
    for name in ("lora_mask", "lora_layers", "lora_steps", "lora_partial"):
        if getattr(settings, name):
            raise UsageError(f"{flag(name)} needs --lora FILE")


def shares_of(settings: LoadSettings, count: int, mixed: bool) -> tuple[Share, ...]:
    """One share for every LoRA; empty when the settings say nothing of it.

    Args:
        settings: with ``lora_layers`` and ``lora_steps``: one text for all files, or one for each.
        count: LoRA files that act everywhere.
        mixed: a router or masks say where files act.

    Raises:
        UsageError: no LoRA, another number of texts than files, or a text that cannot be read.
    """
    given = {name: getattr(settings, name) for name in ("lora_layers", "lora_steps")}
    if not any(given.values()):
        return ()
    for name, texts in given.items():
        if texts and mixed:
            raise UsageError(f"{flag(name)} does not go with --lora-router and --lora-mask, which say where files act")
        if texts and not count:
            raise UsageError(f"{flag(name)} needs --lora FILE")
        if len(texts) > 1 and len(texts) != count:
            raise UsageError(
                explain(flag(name), f"{len(texts)} of them", f"one for all files or {count}, one for each")
            )
    layers, steps = (texts * count if len(texts) == 1 else texts or ("",) * count for texts in given.values())
    return tuple(
        Share(_factors(first), StepFactors.parse(second) if second else None)
        for first, second in zip(layers, steps, strict=True)
    )


def _factors(text: str) -> dict[str, float]:
    pairs = parse_pairs(text, "--lora-layers") if text else {}
    return {name: float(number(value, float, f"--lora-layers {name}")) for name, value in pairs.items()}
