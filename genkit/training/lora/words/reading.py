"""What the picture looks at while the denoiser runs: columns of the new words, and how its own tokens are related."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from genkit.control import Control, KeepPairs, ReadMaps, Rows, Where
from genkit.families.training.base import Words
from genkit.patching.targets import find_denoisers
from genkit.training.lora.words.masks import enlarged, min_max, refined

#: The role of the picture's row in the batch; that of the prior's.
PICTURE, PRIOR = "picture", "prior"
#: Share of the latents' side at which words are read, and at which the picture's own tokens are; of models with several
#: grids the nearest one that is there. Nothing coarser than :data:`FINEST` tokens a side is wished for.
WORDS_AT, OWN_AT, FINEST = 1 / 4, 1 / 2, 16
#: Share of the layers of a model with one grid that is read: those in the middle.
BAND = (0.25, 0.75)
#: How often maps are spread along the picture's own attention.
ROUNDS = 4
_WORDS, _OWN = "words", "own"


class Reading:
    """Reads the attention of one denoiser call; nothing is patched outside of :meth:`on`.

    Args:
        network: the denoiser.
        words: the family's record.
        places: where the new words are, in any prompt.
        arguments: of a forward pass of the denoiser, which tell its grids.
        side: of the latents, the shorter one.
        size: (H, W) of the masks.
    """

    def __init__(
        self,
        network: nn.Module,
        words: Words,
        places: Sequence[int],
        arguments: Mapping[str, Any],
        side: int,
        size: tuple[int, int],
    ):
        self.network, self.words, self.size = network, words, size
        self.places = tuple(sorted({*places, *((0,) if words.start else ())}))
        self.grid, self.own_grid, layers = _chosen(network, words.role, arguments, side)
        where = {"roles": words.role, "layers": layers, "grids": (self.grid,)}
        own = "joint" if words.role == "joint" else "self"
        self._rules = (
            ReadMaps(name=_WORDS, of=PICTURE, tokens=self.places, grad=True, where=Where(**where)),
            KeepPairs(name=_OWN, of=PICTURE, where=Where(roles=own, layers=layers, grids=(self.own_grid,))),
        )
        self._control: Control | None = None

    @contextmanager
    def on(self, rows: Rows) -> Iterator[None]:
        """Read the calls within the block; the first text token of such models is detached in keys and values."""
        with ExitStack() as stack:
            control = stack.enter_context(Control(self.network, self._rules, rows=rows))
            for layer in _text_layers(self.network) if self.words.start else ():
                stack.callback(layer.register_forward_hook(_start_detached).remove)
            self._control = control
            yield

    def maps(self, places: Sequence[int]) -> torch.Tensor:
        """The latest call's maps (concepts, h, w) of the words at some places, then the background; with gradients.

        The background is the first token's map or, where there is none, 1 less the largest of the words' maps, which
        are brought to 0 to 1 for it.
        """
        found = self._read.maps.latest(_WORDS, self.grid)[0, 0].permute(2, 0, 1)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        own = [found[self.places.index(place)] for place in places]
        if self.words.start:
            return torch.stack([*own, found[self.places.index(0)]])
        words = torch.stack(own)
        return torch.cat([words, (1 - min_max(words).amax(0))[None]])

    @torch.no_grad()
    def refined(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (concepts, H, W) of the masks' size that follow the picture's outlines."""
        grid = self.own_grid[1:]

        def spread(value: torch.Tensor) -> torch.Tensor:
            flat = value.flatten(1).T[None]
            done = self._read.propagate(_OWN, flat, rounds=ROUNDS, grid=self.own_grid)
            return done[0].T.reshape(value.shape).to(value.dtype)

        found = refined(enlarged(maps.detach(), (grid[0], grid[1])), spread)
        return found if grid == self.size else enlarged(found, self.size)

    @property
    def _read(self) -> Control:
        assert self._control is not None, "maps are asked for after a call within on()"
        return self._control


def _chosen(
    network: nn.Module, role: str, arguments: Mapping[str, Any], side: int
) -> tuple[tuple[int, int, int], tuple[int, int, int], Any]:
    """The grid at which words are read, the one of the picture's own attention, and the layers."""
    (denoiser,) = find_denoisers(network)
    model = denoiser.model()
    streams = denoiser.family.streams(model, arguments)
    grids: dict[str, dict[tuple[int, int, int], int]] = {}
    for site in denoiser.sites:
        layout = streams.get(site.queries)
        if layout is not None and layout.has_grid:
            grids.setdefault(site.role, {})[layout.grid] = 1
    if role == "joint":
        (grid,) = grids["joint"]
        count = sum(site.role == "joint" for site in denoiser.sites)
        return grid, grid, f"{math.floor(BAND[0] * count)}:{math.ceil(BAND[1] * count)}"
    return _nearest(grids["cross"], side * WORDS_AT), _nearest(grids["self"], side * OWN_AT), None


def _nearest(grids: Mapping[tuple[int, int, int], int], side: float) -> tuple[int, int, int]:
    """The grid whose shorter side is nearest to a wish, by their ratio; the finer one of two."""
    wish = max(side, FINEST)
    return min(sorted(grids, reverse=True), key=lambda grid: abs(math.log(min(grid[1:]) / wish)))


def _text_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that make keys and values of the text in cross-attention."""
    (denoiser,) = find_denoisers(network)
    sites = [site for site in denoiser.sites if site.role == "cross"]
    return [getattr(site.module, name) for site in sites for name in ("to_k", "to_v")]


def _start_detached(layer: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)
