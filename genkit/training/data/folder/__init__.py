"""Samples from a user's files: a folder of pictures and clips with captions, cut to buckets."""
