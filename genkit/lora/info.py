"""What a LoRA file is: form, family, modules, ranks, alphas, sizes of the change, facts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from genkit.lora.contents import Contents
from genkit.lora.lowrank import norm
from genkit.reading import file_digest


def describe(found: Contents) -> dict[str, Any]:
    """Everything that ``genkit lora info`` tells, as plain JSON values.

    Norms are Frobenius norms of the change B A alpha / rank. A list of modules is in the order of the file.
    """
    modules = [
        {
            "part": part,
            "module": module,
            "rank": pair.rank,
            "alpha": float(pair.rank if pair.alpha is None else pair.alpha),
            "shape": [pair.up.shape[0], *pair.down.shape[1:]],
            "norm": norm(pair),
            "dora": pair.magnitude is not None,
            "bias": pair.bias is not None,
        }
        for (part, module), pair in found.pairs.items()
    ]
    tensors = [value for pair in found.pairs.values() for value in (pair.down, pair.up, pair.bias, pair.magnitude)]
    held = [value for value in tensors if value is not None]
    return {
        "file": str(found.path),
        "format": found.form,
        "families": list(found.families),
        "parts": dict(Counter(part for part, _ in found.pairs)),
        "modules": modules,
        "ranks": _counts(modules, "rank"),
        "alphas": _counts(modules, "alpha"),
        "parameters": sum(value.numel() for value in held),
        "dtypes": dict(Counter(str(value.dtype).removeprefix("torch.") for value in held)),
        "megabytes": found.path.stat().st_size / 1e6,
        "sha256": file_digest(found.path),
        "norm": sum(each["norm"] ** 2 for each in modules) ** 0.5,
        "facts": None if found.facts is None else found.facts.to_dict(),
        "texts": {key: value for key, value in found.texts.items() if key.startswith(("ss_", "modelspec."))},
    }


def _counts(modules: list[dict[str, Any]], name: str) -> dict[str, int]:
    """Value -> how many modules have it, the most frequent first."""
    return {f"{value:g}": count for value, count in Counter(each[name] for each in modules).most_common()}


def source_of(path: Path, strength: float = 1.0) -> str:
    """How a file made of others names one of them."""
    return f"{path.name}@{strength:g} sha256:{file_digest(path)[:16]}"
