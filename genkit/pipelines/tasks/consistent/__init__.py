"""``genkit consistent``: the same subjects in several pictures."""
