"""Kernels for processors with AMX (Intel, from Sapphire Rapids on): they multiply 16x16 tiles of bfloat16.

The code is written as LLVM instructions from Python and compiled where it runs, in about a second; no compiler needs to
be installed. ``emitter`` holds the building blocks, ``compiler`` says whether this machine can and makes functions.
"""
