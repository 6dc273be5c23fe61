"""How the file of a mask is read: what of it counts, and how far it may be changed; for commands and for pixels."""

from __future__ import annotations

#: What of the file counts: opacity of files with transparent parts and brightness of others, or one of both.
CHANNELS = ("auto", "brightness", "alpha")
#: Largest growth and feather in pixels.
WIDEST = 1024
