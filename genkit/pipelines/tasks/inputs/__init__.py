"""Runs that are given pictures or clips beside the prompt."""
