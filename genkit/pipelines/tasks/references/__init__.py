"""Runs that follow pictures."""
