"""Kernels for x86-64 processors with AVX-512, and for those that also multiply tiles of bfloat16 (AMX).

The code is written as LLVM instructions from Python and compiled where it runs, in less than a second; no compiler
needs to be installed. ``emitter`` holds the building blocks, ``compiler`` says what this machine can and compiles,
``batch`` runs many calls at once.
"""
