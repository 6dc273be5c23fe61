"""One method's hold on one attention module: where it applies there, whether it can serve a call, what it did."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.method import Method
from genkit.attention.site import Site
from genkit.families.base import Streams
from genkit.patching.call_layouts import CallLayouts
from genkit.patching.counts import Counts
from genkit.patching.interception import Call
from genkit.patching.schedule import Schedule, resolve
from genkit.patching.step_tracker import Moment


class Kind:
    """What is known of all calls of one kind: as many queries, keys and heads, in the same token streams.

    Args:
        layouts: of the queries and keys.
        site: where they are made, without moment and mask.
        grid_rows: see :attr:`CallLayouts.grid_rows`.
        mask_key: which calls share one mask with these.
    """

    __slots__ = ("layouts", "site", "grid_rows", "mask_key", "reasons")

    def __init__(self, layouts: CallLayouts, site: Site, mask_key: Hashable):
        self.layouts, self.site, self.mask_key = layouts, site, mask_key
        self.grid_rows = layouts.grid_rows
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
        self.schedule = schedule
        self.heads = heads
        self.cache = cache
        self.weighted = False  # whether the method has trainable weights here
        self.counts = Counts()
        self._steps: frozenset[int] | None = None
        self._total: int | None = None
        self._kinds: dict[Hashable, Kind | str] = {}
        self._kinds_of: Streams | None = None

    def kind(self, streams: Streams, key: Hashable, find: Callable[[], Kind | str]) -> Kind | str:
        """What is known of a kind of call, or why it cannot be served; found out once while streams are the same.

        Args:
            streams: the model's token streams; another object tells of other streams.
            key: the kind.
            find: finds it out.
        """
        if self._kinds_of is not streams or len(self._kinds) > 64:  # prompts of ever other lengths
            self._kinds, self._kinds_of = {}, streams
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = find()
        return found

    @property
    def adds(self) -> bool:
        """Whether the method's output is added to the attention; not while it makes a call for itself."""
        return self.method.adds and not self.cache.aside

    def follow(self, schedule: Schedule) -> None:
        """Apply at other steps and branches from now on."""
        self.schedule, self._steps, self._total = schedule, None, None

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

    def why_not(self, kind: Kind, site: Site) -> str | None:
        """The method's own refusal of a site, asked once per kind of site."""
        masked = site.key_mask is not None
        if masked not in kind.reasons:
            kind.reasons[masked] = self.method.refusal(site, self.cache)
        return kind.reasons[masked]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, site: Site, call: Call) -> torch.Tensor | None:
        """The method's output for (B, N, H, D) tensors, heads outside the schedule computed by the model's own way."""
        if self.heads is None:
            return self._served(q, k, v, site)
        if k.shape[2] != q.shape[2]:
            repeat = q.shape[2] // k.shape[2]
            k, v = k.repeat_interleave(repeat, dim=2), v.repeat_interleave(repeat, dim=2)
        inside = torch.tensor(self.heads, device=q.device)
        served = self._served(*(x.index_select(2, inside) for x in (q, k, v)), site)
        if served is None:
            return None
        rest = torch.tensor([h for h in range(q.shape[2]) if h not in self.heads], device=q.device)
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
