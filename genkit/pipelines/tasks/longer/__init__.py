"""Clips longer than a model was trained on, from noise that is shared along time."""
