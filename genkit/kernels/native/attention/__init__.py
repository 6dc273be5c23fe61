"""Attention over lists of key units in native kernels; the operators' CPU backends say what is visited."""
