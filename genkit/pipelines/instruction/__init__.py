"""An instruction in free words, with files, as settings of ``genkit generate``: by rules, or by a language model."""
