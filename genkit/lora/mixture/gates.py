"""How much every token takes of every LoRA: by a trained router, by masks, or the same everywhere."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from genkit.errors import UsageError, explain
from genkit.layout import TokenLayout

#: Start of the logit of taking no LoRA: without it a router that begins at zero would send every token to the first.
NONE_BIAS = 1.0
_TINY = 1e-12
#: Layers that make what other tokens read.
_KEYS = ("to_k", "to_v", "add_k_proj", "add_v_proj", "to_key", "to_value")


class Gates(nn.Module):
    """What decides how much of every LoRA a token takes."""

    @abstractmethod
    def forward(self, group: str, path: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Shares of the LoRAs.

        Args:
            group: name of what the layers with this input share.
            path: of the layer.
            x: (..., d) the layers' input.
            present: (E,) bool, the LoRAs that have one of these layers.

        Returns:
            (..., E), or (E,) for all tokens.
        """

    def begin(self, layouts: Sequence[TokenLayout]) -> None:
        """Called before every denoiser call with the layouts of its token streams."""


class Shares(Gates):
    """The same shares everywhere, as ``set_adapters`` gives them."""

    def __init__(self, shares: Sequence[float]):
        super().__init__()
        self.shares: torch.Tensor
        self.register_buffer("shares", torch.tensor([float(share) for share in shares], dtype=torch.float64))

    def forward(self, group: str, path: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See :meth:`Gates.forward`."""
        return self.shares.to(x.device, x.dtype)


class Masks(Gates):
    """A LoRA acts on the tokens of its region; needs no training.

    Args:
        masks: per LoRA (T, H, W) or (H, W) numbers from 0 to 1 at any resolution, averaged over every token's area.
            None = everywhere.
        keys: whether the regions also hold for what other tokens read: the layers that make keys and values. With
            False these take all LoRAs in full, so that each is heard outside of its region too.

    Tokens without a place (text) take every LoRA in full.
    """

    def __init__(self, masks: Sequence[torch.Tensor | None], keys: bool = True):
        super().__init__()
        for mask in masks:
            if mask is not None and mask.dim() not in (2, 3):
                raise UsageError(explain("mask", tuple(mask.shape), "(height, width) or (frames, height, width)"))
        self.masks = [mask if mask is None or mask.dim() == 3 else mask[None] for mask in masks]
        self.keys = keys
        self._layouts: list[TokenLayout] = []
        self._made: dict[TokenLayout, torch.Tensor] = {}

    def begin(self, layouts: Sequence[TokenLayout]) -> None:
        """See :meth:`Gates.begin`."""
        self._layouts = [layout for layout in layouts if layout.has_grid]

    def forward(self, group: str, path: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See :meth:`Gates.forward`."""
        everywhere = torch.ones(len(self.masks), device=x.device, dtype=x.dtype)
        if x.dim() < 3 or (not self.keys and path.rpartition(".")[2] in _KEYS):
            return everywhere
        for layout in self._layouts:
            if x.shape[-2] == layout.length:
                return self._of(layout).to(x.device, x.dtype)
            if x.shape[-2] == layout.grid_length:
                start, stop = layout.grid_span
                return self._of(layout)[start:stop].to(x.device, x.dtype)
        return everywhere

    def _of(self, layout: TokenLayout) -> torch.Tensor:
        """(N, E) shares of a layout's tokens."""
        if layout not in self._made:
            from genkit.attention.reference.masks import grid_mask

            shares = torch.ones(layout.length, len(self.masks))
            start, stop = layout.grid_span
            for column, mask in enumerate(self.masks):
                if mask is not None:
                    shares[start:stop, column] = grid_mask(mask, layout.grid)[0]
            self._made[layout] = shares
        return self._made[layout]


class Router(Gates):
    """A small linear router per layer input that sends every token to one LoRA, or to none.

    Forward it is one-hot at full strength, backward the softmax (straight-through): soft mixtures shrink every LoRA
    and tend to collapse to one of them.

    Args:
        widths: group of layers with the same input -> width of that input.
        experts: number of LoRAs E.
        none: whether a token may take none of them; its logit begins at +1.
        hard: one-hot; False mixes by the softmax.
    """

    def __init__(self, widths: Mapping[str, int], experts: int, none: bool = True, hard: bool = True):
        super().__init__()
        if experts < 1 or (experts < 2 and not none):
            raise UsageError(explain("number of LoRAs for a router", experts, "2 or more, or 1 with none=True"))
        self.widths, self.experts, self.none, self.hard = dict(widths), experts, none, hard
        rows = experts + none
        self.tables = nn.ParameterDict()
        for group, width in widths.items():
            weight_name, bias_name = _names(group)
            self.tables[weight_name] = nn.Parameter(torch.zeros(rows, width))
            bias = torch.zeros(rows)
            if none:
                bias[-1] = NONE_BIAS
            self.tables[bias_name] = nn.Parameter(bias)
        self.seen: list[torch.Tensor] | None = None  # probabilities (n, rows) of a training step

    def probabilities(self, group: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """(..., E), (..., E + 1) with none: the softmax over the LoRAs that have one of the layers."""
        weight, bias = (self.tables[name] for name in _names(group))
        wide = torch.promote_types(x.dtype, weight.dtype)
        # Tokens differ in size by more than in direction: the logits follow the direction.
        x = F.rms_norm(x.to(wide), x.shape[-1:])
        logits = F.linear(x, weight.to(x.device, wide), bias.to(x.device, wide))
        allowed = torch.cat([present, present.new_ones(int(self.none))]).to(x.device)
        return logits.masked_fill(~allowed, -torch.inf).softmax(-1)

    def forward(self, group: str, path: str, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See :meth:`Gates.forward`."""
        chance = self.probabilities(group, x, present)
        if self.seen is not None:
            self.seen.append(chance.flatten(0, -2))
        gates = chance
        if self.hard:
            first = F.one_hot(chance.argmax(-1), chance.shape[-1]).to(chance.dtype)
            # Forward exactly the one-hot; the gradient is that of the probabilities.
            gates = first + (chance - chance.detach())
        return gates[..., : self.experts].to(x.dtype)


def _names(group: str) -> tuple[str, str]:
    """Names of a group's tables; parameters may have no dots in theirs."""
    head = group.replace(".", "/")
    return f"{head}/weight", f"{head}/bias"


def entropy(chance: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of rows of probabilities (n, E)."""
    return -(chance * chance.clamp(min=_TINY).log()).sum(-1).mean()


def balance(chance: torch.Tensor) -> torch.Tensor:
    """Sum over the choices of mean probability times share of tokens whose first choice it is: 1/E when both are even,
    1 when all tokens make one choice with certainty."""
    first = F.one_hot(chance.argmax(-1), chance.shape[-1]).to(chance.dtype).mean(0)
    return (chance.mean(0) * first).sum()


def routing_loss(chance: torch.Tensor, even: float, sharp: float) -> torch.Tensor:
    """``even * balance + sharp * entropy``: spreads tokens over the LoRAs and makes every choice more certain.

    LoRA-Mixer (arXiv 2507.00029) prints the entropy with a minus, which makes choices less certain, the opposite of
    what its text wants.

    Args:
        chance: (n, E) probabilities.
        even: 0.01 is usual; 0 where the data need the LoRAs unevenly.
        sharp: 0.01 is usual, after a start of 0.
    """
    loss = chance.new_zeros(())
    if even:
        loss = loss + even * balance(chance)
    return loss + sharp * entropy(chance) if sharp and math.isfinite(sharp) else loss
