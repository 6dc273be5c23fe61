"""Control of attention: rows of a batch by name, takes between them, masks, and maps read and written.

What the editing methods share and nothing more: ``rows`` names the rows of a denoiser call, ``spans`` finds words among
text tokens, ``alignment`` pairs the tokens of two prompts.
"""

from genkit.control.alignment import Alignment, align, replacement
from genkit.control.rows import Row, Rows
from genkit.control.spans import text_parts, text_tokens, word_tokens

__all__ = ["Alignment", "Row", "Rows", "align", "replacement", "text_parts", "text_tokens", "word_tokens"]
