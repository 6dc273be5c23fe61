"""Which layouts the queries and the keys of one attention call have, or why that cannot be told."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genkit.errors import UnsupportedError
from genkit.families.base import OWN_KEYS, Family, FoundSite, OpenLayout, Streams, Untold
from genkit.layout import GRID, TEXT, Segment, TokenLayout

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CallLayouts:
    """The layouts of one call.

    Args:
        asking: layout of the queries as they came.
        keys: layout of the keys.
        places: where the queries sit among the keys, when they are a part of them and more keys are read; else None.
    """

    asking: TokenLayout
    keys: TokenLayout
    places: Spans | None = None

    @property
    def queries(self) -> TokenLayout:
        """Layout of the queries as a method gets them."""
        return self.asking if self.places is None else self.keys

    @property
    def grid_rows(self) -> tuple[int, int] | None:
        """Span of the grid among the queries as they came, when other tokens ask too."""
        start, stop = self.asking.grid_span
        return (start, stop) if 0 < stop - start < self.asking.length else None

    def spread(self, q: torch.Tensor) -> torch.Tensor:
        """(B, Nq, H, D) queries at their places among the keys; the keys that do not ask get zeros."""
        if self.places is None:
            return q
        parts, at, came = [], 0, 0
        for start, stop in self.places:
            parts += [q.new_zeros(q.shape[0], start - at, *q.shape[2:]), q[:, came : came + stop - start]]
            at, came = stop, came + stop - start
        return torch.cat([*parts, q.new_zeros(q.shape[0], self.keys.length - at, *q.shape[2:])], dim=1)

    def gather(self, out: torch.Tensor) -> torch.Tensor:
        """The rows of those that asked."""
        if self.places is None:
            return out
        return torch.cat([out[:, start:stop] for start, stop in self.places], dim=1)


class SiteLayouts:
    """Tells the layouts of the calls of one attention module.

    Args:
        name: the layer's name for messages.
        family: the model's record.
        found: the module's place in it.
    """

    def __init__(self, name: str, family: Family, found: FoundSite):
        self.name, self.family = name, family
        self.role, self.queries, self.keys, self.some = found.role, found.queries, found.keys, found.some_calls
        self._known: dict[object, CallLayouts | str] = {}

    def key_stream(self, index: int) -> str:
        """Name of the stream whose tokens are the keys of call number ``index`` of a forward."""
        return self.keys[min(index, len(self.keys) - 1)]

    def of(self, streams: Streams, index: int, n_q: int, n_k: int) -> CallLayouts | str:
        """The layouts of a call of ``n_q`` queries and ``n_k`` keys, or the reason why it cannot be served.

        Raises:
            UnsupportedError: the queries are not the tokens that the forward's arguments tell of.
        """
        asking, stream = streams.get(self.queries), self.key_stream(index)
        asked = streams.get(stream)
        key = (asking, asked, stream, n_q, n_k)
        if key not in self._known:
            if len(self._known) > 64:  # prompts of ever other lengths
                self._known.clear()
            self._known[key] = self._find(asking, asked, stream, n_q, n_k)
        return self._known[key]

    def _find(self, asking: object, asked: object, stream: str, n_q: int, n_k: int) -> CallLayouts | str:
        reason = next((each.reason for each in (asking, asked) if isinstance(each, Untold)), None)
        if reason is not None:
            return reason
        own = self.role in OWN_KEYS
        if own and stream == self.queries and n_q != n_k:
            if self.some:
                return f"its {n_q} queries and {n_k} keys are not the token grid's"
            return f"its {n_k} keys are not the {n_q} tokens that ask (an image prompt adapter?)"
        if self.some and not (_has(asking, n_q) and _has(asked, n_k)):
            return f"its {n_q} queries and {n_k} keys are not the token grid's"
        queries = self._layout(asking, self.queries, n_q)
        if stream == self.queries:
            return CallLayouts(queries, queries if n_q == n_k else self._layout(asked, stream, n_k))
        keys = self._layout(asked, stream, n_k)
        if not own or queries == keys:
            return CallLayouts(queries, keys)
        spans = [keys.span(part.name) or (0, 0) for part in queries.segments]
        lengths = [(stop - start) for start, stop in spans]
        inside = lengths == [part.length for part in queries.segments]
        if not inside or queries.grid != keys.grid or sorted(spans) != spans:
            return f"its {n_k} keys do not hold the {n_q} tokens that ask"
        return CallLayouts(queries, keys, tuple(spans))

    def _layout(self, told: object, stream: str, length: int) -> TokenLayout:
        """Layout of a stream, checked against the number of tokens that really came."""
        if told is None:
            return TokenLayout.sequence(length, stream)
        layout = told.of(length) if isinstance(told, OpenLayout) else told
        assert isinstance(layout, TokenLayout)
        return layout if layout.length == length else self._shorter(layout, length)

    def _shorter(self, layout: TokenLayout, length: int) -> TokenLayout:
        text = next((part.length for part in layout.segments if part.name == TEXT), 0)
        missing = layout.length - length
        if not self.family.varying_text or not 0 <= missing <= text:
            parts = " + ".join(f"{part.length} {part.name}" for part in layout.segments)
            raise UnsupportedError(
                f"layer {self.name}: {length} tokens came, but the arguments of the {self.family.name} model "
                f"tell of {layout.length} ({parts}, grid {'x'.join(map(str, layout.grid))}); genkit cannot tell "
                f"which is which"
            )
        segments = [
            Segment(part.name, part.length - missing) if part.name == TEXT else part for part in layout.segments
        ]
        left = tuple(part for part in segments if part.length or part.name == GRID)
        return TokenLayout(layout.grid, left, copies=layout.copies)


def _has(told: object, length: int) -> bool:
    """Whether a stream can have this many tokens."""
    if isinstance(told, OpenLayout):
        return told.closed.length <= length
    return not isinstance(told, TokenLayout) or told.length == length
