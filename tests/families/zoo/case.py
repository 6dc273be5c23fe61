"""One tiny model with the arguments of a forward and what a patch of it has to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Case:
    """A tiny denoiser.

    Args:
        model: the Diffusers model.
        args: keyword arguments of one forward, or a function that makes them anew for every forward (caches that a
            forward writes). ``return_dict=False`` is added where the forward takes it.
        grid: (T, H, W) tokens of the stream that the first layer with a grid asks from.
        calls: role -> attention calls of one forward that a method serves.
        declined: a piece of a reason -> calls of one forward that go to the model's own attention for it.
        skipped: forwards of attention modules of the record that make no call.
        silent: attention modules of the record that a forward does not run at all.
        axes: order of the axes of the noisy latents ("BCTHW", ...), or "BNC" for tokens, to see that the grid is in
            raster order; "" where the case cannot tell.
        moves: segment of the layout -> forward argument whose change moves exactly these keys of the first layer.
        tolerance: of outputs relative to the largest number of the output.
        padded: whether a mask hides places of the grid, which some methods cannot take.
        paired: calls of self- and joint attention whose mask shows other keys to other queries, which some methods
            cannot take.
        refused: a piece of the reason for which the class cannot be patched at all; "" = it can.
    """

    model: Any
    args: dict[str, Any] | Callable[[], dict[str, Any]]
    grid: tuple[int, int, int]
    calls: dict[str, int] = field(default_factory=dict)
    declined: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    silent: int = 0
    axes: str = ""
    moves: dict[str, str] = field(default_factory=dict)
    tolerance: float = 5e-6
    padded: bool = False
    paired: int = 0
    refused: str = ""

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of the next forward."""
        return dict(self.args() if callable(self.args) else self.args)

    def run(self, **changes: Any) -> torch.Tensor:
        """One forward without gradients; every tensor it returns flattened into one vector."""
        import inspect

        given = self.given | changes
        if "return_dict" in inspect.signature(type(self.model).forward).parameters:
            given.setdefault("return_dict", False)
        with torch.no_grad():
            return torch.cat([tensor.flatten().float() for tensor in _tensors(self.model(**given))])

    @functools.cached_property
    def reference(self) -> torch.Tensor:
        """The output of the untouched model."""
        return self.run()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in what a forward returns."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
