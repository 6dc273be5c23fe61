"""Every prompt through all rows before the next one begins; the report is whole after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from benchmarks.editing.store import Store
from benchmarks.environment import write_results
from benchmarks.toy_common import tell


class Bench(Protocol):
    """A model at a size with its rows."""

    name: str

    def prompt(self, number: int) -> bool:
        """Measure what rows lack of a prompt; whether there was something."""


def rounds(
    title: str, benches: Iterable[Bench], prompts: int, store: Store, text: Callable[[Store], str], output: Path
) -> int:
    """Measure what is missing, write the results and print them.

    Args:
        title: of the result files. benches: made one after the other, each when the one before is done.
        prompts: how many. store, text: the rows and the report of them. output: folder of the files.

    Returns:
        The exit code.
    """
    for bench in benches:
        for number in range(prompts):
            if bench.prompt(number):
                write_results(title, store.data(), text(store), output)
            tell(bench.name, number + 1, prompts)
    told = text(store)
    write_results(title, store.data(), told, output)
    print(told)
    return 0
