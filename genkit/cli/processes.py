"""The processes that one command was started as, by ``accelerate launch`` or ``torchrun``: they share its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
#: What a launcher tells every process; without all of them a command is alone.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among all of one command.

    Args:
        rank: of this one, from 0 on.
        count: of all.
        local: index among those of its machine, which its GPU has too.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether it speaks for all."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """Every ``count``-th row, those of this process."""
        return list(rows[self.rank :: self.count])

    def same(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        from torch import distributed

        found: list[Any] = [value]
        distributed.broadcast_object_list(found)
        return found[0]

    def all(self, rows: list[T]) -> list[T]:
        """The rows of all processes in the order before :meth:`share`; complete in the first one alone."""
        if self.count == 1:
            return rows
        from torch import distributed

        shares: list[Any] | None = [None] * self.count if self.first else None
        distributed.gather_object(rows, shares)
        if shares is None:
            return rows
        longest = max(map(len, shares))
        return [share[index] for index in range(longest) for share in shares if index < len(share)]

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def device(self, device: str) -> str:
        """Where a process runs that was asked for ``auto``: on a GPU of its own, where there are GPUs."""
        if self.count == 1 or device != "auto":
            return device
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{self.local % found}" if found else device


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes of this command, joined by gloo as long as the context lasts."""
    told = [os.environ.get(name, "") for name in _TOLD]
    if not all(told) or int(told[1]) == 1:
        yield Processes()
        return
    from torch import distributed

    # One waits for the other until its whole share is made, which may be hours of video.
    distributed.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Processes(int(told[0]), int(told[1]), int(os.environ.get("LOCAL_RANK", told[0])))
    finally:
        distributed.destroy_process_group()
