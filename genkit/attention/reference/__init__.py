"""Reference attention: ``method``, what a patch remembers in ``store``, boxes and loss in ``masks``."""

from genkit.attention.reference.method import Reference
from genkit.attention.reference.store import References

__all__ = ["Reference", "References"]
