"""Videos at several times the size a model was trained on: a second, patched pass."""
