"""A video for a given sound, or a sound for a given video."""
