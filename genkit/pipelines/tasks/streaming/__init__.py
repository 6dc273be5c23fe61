"""Video made chunk by chunk, written as it is made."""
