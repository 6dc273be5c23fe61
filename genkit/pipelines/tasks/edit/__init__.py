"""Changing a picture or clip by words."""
