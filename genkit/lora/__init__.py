"""LoRA files: read in every common form of names, matched with a model, loaded, written and changed."""
