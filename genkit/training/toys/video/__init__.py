"""Making toy-video."""
