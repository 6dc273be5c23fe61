"""The queries of a layer before they are turned by their positions, averaged over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genkit.attention.site import Place

#: Takes (B, C), C channels of all heads; None when a call of the module begins.
Keep = Callable[[torch.Tensor | None], None]


class QueryMeans:
    """Follows the projection to queries of an attention module, also one that adapters replace later.

    Args:
        keep: gets the mean of every call over its tokens, at least float32, without gradient. A call whose queries come
            from elsewhere (fused projections) leaves None.
    """

    def __init__(self, place: Place, keep: Keep):
        self.place, self.keep = place, keep
        self.source: Any = None
        self.hooks = [place.module.register_forward_pre_hook(self.begin)]
        self._follow()

    def remove(self) -> None:
        """Stop following."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def begin(self, module: Any, args: Any) -> None:
        """Before a call of the module."""
        if torch.compiler.is_compiling():  # a graph would keep the queries of the call that was traced
            torch._dynamo.graph_break()
        if self.place.projections.q is not self.source:
            self._follow()
        self.keep(None)

    def _follow(self) -> None:
        for hook in self.hooks[1:]:
            hook.remove()
        self.source = self.place.projections.q
        here = [] if self.source is None else [self.source.register_forward_hook(self.take)]
        self.hooks = [*self.hooks[:1], *here]

    def take(self, module: Any, args: Any, output: torch.Tensor) -> None:
        """After a call of the projection."""
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break()
        wide = torch.promote_types(output.dtype, torch.float32)
        self.keep(output.detach().to(wide).flatten(1, -2).mean(1))
