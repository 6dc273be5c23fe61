"""Making toy-dit."""
