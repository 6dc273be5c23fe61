"""Which layers follow the style, and where image prompts act: the published ones of SDXL, as rules for all models."""

from __future__ import annotations

import math
import re
from typing import Any

from genkit.errors import UnsupportedError, UsageError, explain

_UNET_PART = re.compile(r"((?:down|up)_blocks\.\d+)\.attentions\.\d+")


def style_layers(family: Any, network: Any, asked: str | None = None) -> str:
    """Regular expression of the layers that take keys and values of the style.

    The last third of a UNet decoder's transformers, rounded up: of SDXL's six the last two, as published. Of a
    transformer the last third of its layers with self- or joint attention: structure is settled in the earlier ones.

    Args:
        asked: a regular expression of the user, taken as it is.

    Raises:
        UsageError: ``asked`` is found in no layer.
        UnsupportedError: a model without such layers.
    """
    sites = [site.path for site in family.find_sites(network) if site.role in ("self", "joint")]
    if asked is not None:
        if not any(re.search(asked, path) for path in sites):
            known = f"a regular expression found in a layer with self- or joint attention, such as {sites[-1]}"
            raise UsageError(explain("style_layers", asked, known if sites else "nothing: the model has none"))
        return asked
    parts = list(dict.fromkeys(match[0] for path in sites if (match := _UNET_PART.match(path))))
    decoder = [part for part in parts if part.startswith("up_blocks")]
    chosen = decoder or ([] if parts else sites)
    if not chosen:
        raise UnsupportedError(
            f"{type(network).__name__} has no self-attention in its decoder, which style transfer works on; name other "
            "layers"
        )
    return _any_of(chosen[-math.ceil(len(chosen) / 3) :])


def prompt_layers(network: Any) -> tuple[str, str]:
    """Regular expressions of the UNet layers where the image prompts of content and style act.

    The content's in the encoder's last transformer, the style's in the decoder's first block but for its first
    transformer: of SDXL ``down_blocks.2.attentions.1``, and ``up_blocks.0.attentions.1`` and ``.2``, as published.
    """
    names = [name for name, _ in network.named_modules() if _UNET_PART.fullmatch(name)]
    content = [name for name in names if name.startswith("down")][-1:]
    first = next((name.partition(".attentions")[0] for name in names if name.startswith("up")), "")
    style = [name for name in names if first and name.startswith(first + ".")]
    return _any_of(content), _any_of(style[1:] or style)


def _any_of(names: list[str]) -> str:
    """An expression for these modules and what is in them, wherever the denoiser's own name stands before; for none it
    matches nothing."""
    return rf"(?:^|\.)(?:{'|'.join(map(re.escape, names))})(?:\.|$)" if names else r"(?!)"
