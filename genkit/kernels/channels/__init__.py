"""Head sizes that are no power of two, as kernels take them apart: :func:`head_parts` says how, ``triton`` does it."""

from genkit.kernels.channels.parts import Parts, head_parts, one_part, padded

__all__ = ["Parts", "head_parts", "one_part", "padded"]
