"""Metrics and comparisons of generated clips."""
