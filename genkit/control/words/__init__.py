"""Word weights: the syntax ``(word:1.3)`` in ``syntax``, weights in force on a pipeline in ``weights``."""

from genkit.control.words.syntax import Emphasis, Weighted, parse_weights
from genkit.control.words.weights import WordWeights, word_rules

__all__ = ["Emphasis", "Weighted", "WordWeights", "parse_weights", "word_rules"]
