"""Benchmarks of the attention operators."""
