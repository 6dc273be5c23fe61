"""Counting what really ran: calls, reasons, seconds and the sites that were met."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from genkit.attention.site import Site


def start_watch(tensor: torch.Tensor) -> object:
    """Begin to time work on a tensor's device; returns what :meth:`Stopwatch.stop` needs."""
    if not tensor.is_cuda:
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Stopwatch:
    """Seconds of work on one device; CUDA work is timed by events and summed when asked for."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def stop(self, begun: object) -> None:
        """End what :func:`start_watch` began."""
        if isinstance(begun, float):
            self._seconds += perf_counter() - begun
            return
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        self._events.append((begun, end))
        if len(self._events) > 4096:
            self.seconds()

    def seconds(self) -> float:
        """Seconds so far. Waits for the device when there is work in flight."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds


class Counted(Protocol):
    """A kind of call, which remembers where its calls are counted."""

    tally: Tally | None


class Tally:
    """Calls and query-key pairs of one kind of site.

    Args:
        site: without step and branch.
        among: the tallies it belongs to.
    """

    __slots__ = ("site", "among", "calls", "pairs")

    def __init__(self, site: Site, among: object):
        self.site, self.among = site, among
        self.calls = self.pairs = 0


class Counts:
    """What happened at one site under one patch.

    Args of interest: ``ran`` calls served by the method, ``outside`` calls that the schedule does not cover or the
    method's settings leave out, ``declined`` reason -> calls the model's own attention served instead, ``skipped``
    forwards without any attention call, ``pairs`` query-key pairs of all calls (rows of the batch counted, heads not),
    ``ran_pairs`` those that the method served.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Back to zero."""
        self.ran = 0
        self.outside = 0
        self.skipped = 0
        self.declined: Counter[str] = Counter()
        self.steps: set[int] = set()
        self.branches: set[str] = set()
        self._tallies: dict[tuple[object, ...], Tally] = {}
        self.pairs = 0
        self.method_time = Stopwatch()
        self.own_time = Stopwatch()

    @property
    def calls(self) -> int:
        """All attention calls of the site."""
        return self.ran + self.outside + sum(self.declined.values())

    @property
    def sites(self) -> dict[Site, int]:
        """Site without step and branch -> calls the method served there, in the order in which they were met."""
        return {tally.site: tally.calls for tally in self._tallies.values()}

    @property
    def ran_pairs(self) -> Counter[Site]:
        """The same sites -> query-key pairs of these calls."""
        return Counter({tally.site: tally.pairs for tally in self._tallies.values()})

    def note_run(self, kind: Counted, site: Site, pairs: int, begun: object) -> None:
        """Count a call the method served with its query-key pairs, under its site without step and branch.

        ``begun`` is what :func:`start_watch` gave when the method was asked.
        """
        self.method_time.stop(begun)
        self.ran += 1
        tally = kind.tally
        if tally is None or tally.among is not self._tallies:
            tally = kind.tally = self._tally(site)
        tally.calls += 1
        tally.pairs += pairs
        if site.step is not None:
            self.steps.add(site.step)
        if site.branch is not None:
            self.branches.add(site.branch)

    def _tally(self, site: Site) -> Tally:
        """The tally of a kind of site, a new one at its first call since counting began."""
        key = (site.layout, site.key_layout, site.heads, site.scale, site.finest)
        if key not in self._tallies:
            self._tallies[key] = Tally(site.at(None, None, None), self._tallies)
        return self._tallies[key]
