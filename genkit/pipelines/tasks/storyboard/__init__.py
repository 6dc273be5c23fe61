"""``genkit generate`` with several prompts in a row."""
