"""``genkit style``: a picture in the manner of another one."""
