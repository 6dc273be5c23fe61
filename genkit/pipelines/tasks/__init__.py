"""Kinds of runs. A file here, or a folder with ``task.py``, is found by its ``TASK``, see :mod:`genkit.pipelines.task`;
tasks do not import each other."""
