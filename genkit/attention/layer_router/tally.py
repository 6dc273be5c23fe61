"""What was decided at a layer, counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """Decisions of a layer, one per sample and call.

    Args:
        layer, role: of the layer.
        rows: all of them. full: those for full attention. served: those of calls in which some sample was sparse;
            sparse: of these, the sparse ones.
    """

    layer: int
    role: str
    rows: int = 0
    full: int = 0
    served: int = 0
    sparse: int = 0

    def count(self, full: list[bool], served: bool) -> None:
        """Add the decisions of a call."""
        self.rows += len(full)
        self.full += sum(full)
        if served:
            self.served += len(full)
            self.sparse += len(full) - sum(full)

    @property
    def share(self) -> float:
        """Of full decisions."""
        return self.full / self.rows
