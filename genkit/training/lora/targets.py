"""Which layers of a denoiser a LoRA changes: names, ends of names or regular expressions, every one of them checked."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from genkit.errors import UnsupportedError, UsageError, escaped, shortened, shown

#: Every linear layer.
ALL_LINEAR = "all-linear"
#: Layers that an adapter can sit on; those of quantised models are their subclasses.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = re.compile(r"[\w.]+")
_NAMES = 12


def find_targets(
    model: nn.Module, wanted: Sequence[str], excluded: Sequence[str] = (), default: str | None = None
) -> list[str]:
    """Dotted paths of the layers that an adapter goes on, in the model's order.

    Args:
        model: the denoiser.
        wanted: texts; one of letters, digits, ``_`` and dots alone is a layer's name or the end of one
            (``to_q``, ``blocks.0.attn1.to_q``), any other a regular expression for the whole path, ``all-linear`` every
            linear layer. Empty: ``default``.
        excluded: layers that are left out, written the same way.
        default: regular expression of the model's family; None where it has none.

    Raises:
        UsageError: a text that names no layer of the model or is no regular expression, or nothing is left.
        UnsupportedError: nothing is wanted and the family has no default.
    """
    layers = [path for path, module in model.named_modules() if isinstance(module, LAYERS)]
    if not wanted and default is None:
        raise UnsupportedError(
            f"target_modules: {type(model).__name__} has no default layers for LoRA here; name some: {_listed(layers)}"
        )
    texts = wanted or ([] if default is None else [default])
    named = [_matched(model, "target_modules", text, layers) for text in texts]
    out = {path for text in excluded for path in _matched(model, "exclude_modules", text, layers)}
    chosen = {path for paths in named for path in paths} - out
    if not chosen:
        raise UsageError("exclude_modules: it leaves nothing of target_modules to train; leave some layers in")
    return [path for path in layers if path in chosen]


def check_patterns(what: str, patterns: Iterable[str], targets: Sequence[str]) -> None:
    """Refuse a pattern of ranks or alphas that fits no layer of the adapter; UsageError."""
    for pattern in patterns:
        if not fitting(what, pattern, targets):
            raise UsageError(
                f"{what}: {shown(pattern)} fits none of the layers that are trained{_near(pattern, targets)}"
            )


def fitting(what: str, pattern: str, targets: Sequence[str]) -> list[str]:
    """The layers that a text means; see :func:`find_targets`."""
    if _PLAIN.fullmatch(pattern):
        return [path for path in targets if path == pattern or path.endswith(f".{pattern}")]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{what}: {shown(pattern)} is neither a layer's name nor a regular expression ({error})"
        ) from error
    return [path for path in targets if expression.fullmatch(path)]


def _matched(model: nn.Module, what: str, text: str, layers: Sequence[str]) -> list[str]:
    if text == ALL_LINEAR:
        return [path for path in layers if isinstance(model.get_submodule(path), nn.Linear)]
    found = fitting(what, text, layers)
    if not found:
        near = _near(text, layers)
        raise UsageError(
            f"{what}: {shown(text)} names no layer of {type(model).__name__}{near}; there are {_listed(layers)}"
        )
    return found


def _near(text: str, layers: Sequence[str]) -> str:
    """The names that a text may have meant, as words for an error."""
    ends = dict.fromkeys(".".join(path.split(".")[-count:]) for path in layers for count in (1, 2, 3))
    near = difflib.get_close_matches(text[:200], [*ends, *layers], n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _listed(layers: Sequence[str]) -> str:
    """Ends of the layers' names with how many there are, the most frequent first."""
    counts = Counter(_end(path) for path in layers).most_common()
    told = ", ".join(f"{name} ({count})" for name, count in counts[:_NAMES])
    return escaped(shortened(told, 600)) + (f" and {len(counts) - _NAMES} more names" if len(counts) > _NAMES else "")


def _end(path: str) -> str:
    """The last word of a path, with the number of a layer in a list: ``to_out.0``."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]
