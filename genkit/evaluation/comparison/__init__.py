"""Comparing several ways to run one model from the same seeds: what each costs, and what it changes.

The call is in ``api``. Nothing is imported here, so that the command line can read ``settings`` without torch.
"""
