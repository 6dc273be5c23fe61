"""Whole runs on top of Diffusers: loading a model by name, generating, storing what was done."""
