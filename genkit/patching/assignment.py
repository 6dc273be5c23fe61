"""One method's hold on one attention module: where it applies there, whether it can serve a call, what it did."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.families.base import Streams
from genkit.patching.call_layouts import CallLayouts
from genkit.patching.counts import Counts, Tally
from genkit.patching.first_step import Check, Checked
from genkit.patching.interception import Call
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.step_tracker import Moment

#: Number of the call within its module's forward, queries, keys, heads of queries and of keys, softmax scale.
KindKey = tuple[int, int, int, int, int, float | None]


class Kind:
    """What is known of all calls of one kind: as many queries, keys and heads, in the same token streams.

    Args:
        layouts: of the queries and keys.
        heads: those that the method gets, None = all of the call.
        site: where they are made, without moment and mask.
        grid_rows: see :attr:`CallLayouts.grid_rows`.
        grid_keys: spans of the grid and its copies among the keys.
        plain: whether the method gets all heads of the queries, keys and values as they came.
        mask_key: which calls share one mask with these.
        tally: where such calls are counted.
    """

    __slots__ = ("layouts", "heads", "site", "grid_rows", "grid_keys", "plain", "mask_key", "reasons", "tally")

    def __init__(self, layouts: CallLayouts, heads: tuple[int, ...] | None, site: Site, mask_key: Hashable):
        self.heads = heads
        self.layouts, self.site, self.mask_key = layouts, site, mask_key
        self.grid_rows, self.plain = layouts.grid_rows, heads is None and layouts.places is None
        self.grid_keys = site.key_layout.grid_spans
        self.tally: Tally | None = None
        self.reasons: dict[bool, str | None] = {}  # whether keys are hidden -> the method's refusal


class Assignment:
    """One method on one patched layer.

    Args:
        method: the attention method.
        schedule: where it applies.
        heads: covered query heads, or None for all of them.
        cache: plan storage of the patch.
    """

    def __init__(self, method: Method, schedule: Schedule, heads: tuple[int, ...] | None, cache: PatchCache):
        self.method = method
        self.heads = heads
        self.cache = cache
        self.weighted = False  # whether the method has trainable weights here
        self.counts = Counts()
        self.check: Check | None = None  # a comparison with dense attention that is still due
        self.checked: Checked | None = None  # what it found
        self.may_add = method.adds  # asked at every call before the property
        self.follow(schedule)
        #: What is known of every kind of call, or why it cannot be served, as long as ``streams`` is the same object.
        self.kinds: dict[KindKey, Kind | str] = {}
        self.streams: Streams | None = None

    def forget(self, streams: Streams) -> dict[KindKey, Kind | str]:
        """Begin anew with what is known of kinds of calls: the model tells of other token streams."""
        self.kinds, self.streams = {}, streams
        return self.kinds

    @property
    def adds(self) -> bool:
        """Whether the method's output is added to the attention; not while it makes a call for itself."""
        return self.may_add and not self.cache.aside

    def follow(self, schedule: Schedule) -> None:
        """Apply at other steps and branches from now on."""
        self.schedule = schedule
        self.everywhere = schedule.branches is None and schedule.steps is None
        self._steps: frozenset[int] | None = None
        self._total: int | None = None

    def covers(self, moment: Moment) -> bool:
        """Whether the schedule includes a call at this moment. The owner has checked that the schedule fits."""
        if moment.aside:
            return self.cache.aside == self.method.name
        schedule = self.schedule
        if schedule.branches is not None and moment.branch not in schedule.branches:
            return False
        if schedule.steps is None:
            return True
        if moment.steps is None:
            return any(
                span.start <= moment.step and (span.stop is None or moment.step < span.stop) for span in schedule.steps
            )
        if self._steps is None or self._total != moment.steps:
            self._steps = resolve("steps", schedule.steps, moment.steps)
            self._total = moment.steps
        return moment.step in self._steps

    def attend(
        self,
        heads: tuple[int, ...] | None,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        site: Site,
        call: Call,
    ) -> torch.Tensor | None:
        """The method's output for (B, N, H, D) tensors, other than the covered ``heads`` computed by the model."""
        if heads is None:
            return self._served(q, k, v, site)
        if k.shape[2] != q.shape[2]:
            repeat = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        inside = torch.tensor(heads, device=q.device)
        served = self._served(*(x.index_select(2, inside) for x in (q, k, v)), site)
        if served is None:
            return None
        rest = torch.tensor([h for h in range(q.shape[2]) if h not in heads], device=q.device)
        if call.mask is not None and call.mask.ndim == 4 and call.mask.shape[1] > 1:
            own = call.own(q, k, v).index_select(2, rest)  # the mask is laid out for all heads
        else:
            own = call.own(*(x.index_select(2, rest) for x in (q, k, v)))
        order = torch.argsort(torch.cat([inside, rest]))
        return torch.cat([served, own.to(served.dtype)], dim=2).index_select(2, order)

    def _served(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site) -> torch.Tensor | None:
        if q.is_meta or not torch.is_autocast_enabled(q.device.type):  # meta has no autocast
            return self.method.attend(q, k, v, site, self.cache)
        # A method chooses its precision itself: autocast would round what it computes in float32.
        with torch.autocast(q.device.type, enabled=False):
            return self.method.attend(q, k, v, site, self.cache)
