"""Samples of the toy world, rendered and encoded as they are needed."""
