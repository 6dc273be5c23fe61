"""Cases of sound models."""
