"""Cases of image models."""
