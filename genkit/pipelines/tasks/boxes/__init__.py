"""Clips whose object goes along a track of boxes."""
