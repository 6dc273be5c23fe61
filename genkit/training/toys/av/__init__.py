"""Making toy-av."""
