"""The implementations, one module or folder each; none imports another."""
