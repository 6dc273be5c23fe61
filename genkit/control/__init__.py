"""Control of attention: what editing methods share, and no method of its own.

``Rows`` names the rows of a denoiser call; rules (``Take``, ``Extra``, ``Mix``, ``Forbid``, ``ScaleKeys``, ``Refine``,
``Replace``, ``Reweight``, ``ReadMaps``, ``KeepPairs``) say what happens to which rows; ``Where`` says at which layers
and steps; ``Control`` puts them on a model. ``text_tokens`` finds words among text tokens, ``align`` pairs the tokens
of two prompts.
"""

from genkit.control.alignment import Alignment, align, replacement
from genkit.control.control import Control
from genkit.control.maps import Maps
from genkit.control.regions import Seen, Tokens
from genkit.control.rows import Row, Rows
from genkit.control.rules import (
    Extra,
    Forbid,
    KeepPairs,
    Mix,
    ReadMaps,
    Refine,
    Replace,
    Reweight,
    Rule,
    ScaleKeys,
    Take,
)
from genkit.control.spans import text_parts, text_tokens, word_tokens
from genkit.control.where import Where

__all__ = [
    "Alignment",
    "Control",
    "Extra",
    "Forbid",
    "KeepPairs",
    "Maps",
    "Mix",
    "ReadMaps",
    "Refine",
    "Replace",
    "Reweight",
    "Row",
    "Rows",
    "Rule",
    "ScaleKeys",
    "Seen",
    "Take",
    "Tokens",
    "Where",
    "align",
    "replacement",
    "text_parts",
    "text_tokens",
    "word_tokens",
]
