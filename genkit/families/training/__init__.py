"""How each family's denoiser is called in training: ``base`` says what a record holds, one file a family has it.

A file that describes a family has ``PIPELINES``: name of a Diffusers pipeline class -> function that makes its record.
It may have ``REFUSED``: name of a class of the family that cannot be trained -> why.
"""
