"""Pictures made anew by attention: edits, styles, subjects; one folder a method, what they share in ``shared``."""
