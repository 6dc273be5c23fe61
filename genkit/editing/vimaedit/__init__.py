"""Editing with grounded masks: vision guidance and noise that depends on the place."""
