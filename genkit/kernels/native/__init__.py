"""Kernels for CPUs, from two origins behind one interface (``compiler.Compiled``, run by ``batch``).

``csrc`` holds C++ for vectors of any width, ``library`` compiles and loads it with whatever compiler there is. What C++
does not serve, bfloat16 in AMX tiles, is written as LLVM instructions from Python: ``emitter`` holds building blocks,
``compiler`` says what this machine can and compiles. ``kinds`` says which of all these runs.
"""
