"""Editing with virtual inversion and unified attention control (InfEdit)."""
