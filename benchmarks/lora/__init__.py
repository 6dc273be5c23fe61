"""Benchmarks of training a LoRA."""
