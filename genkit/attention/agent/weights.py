"""Trained form of agent attention: position biases for any grid from small tables, and a convolution of the values."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from genkit.attention.site import Place
from genkit.attention.weights import like
from genkit.errors import UnsupportedError
from genkit.kernels import LowRank

Grid = tuple[int, int, int]


def linear_weights(at: torch.Tensor, length: int, stored: int) -> torch.Tensor:
    """Weights (n, stored) that interpolate a table over an axis linearly, ends held.

    Args:
        at: (n,) places on the axis in tokens, fractions allowed. length: tokens of the axis.
        stored: entries of the table; spread over the axis so that every entry stands for ``length / stored`` tokens.
    """
    place = ((at.double() + 0.5) * (stored / length) - 0.5).clamp(0, stored - 1)
    return (1 - (place[:, None] - torch.arange(stored)).abs()).clamp(min=0)


class Positions:
    """Where tokens and agents of a grid lie in the stored tables; depends on sizes alone.

    Attributes:
        tokens: (N, R) float32 weights of a token in [map | frames | rows | columns].
        agents: (n, A) float32 weights of an agent in the lattice of agents.
    """

    def __init__(self, grid: Grid, cell: tuple[torch.Tensor, torch.Tensor], lattice: Grid, lines: Grid):
        cell_of, sizes = cell
        axes = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
        at = [axis.flatten() for axis in axes]
        rows, columns = (linear_weights(at[a], grid[a], lattice[a]) for a in (1, 2))
        square = (rows[:, :, None] * columns[:, None]).flatten(1)
        self.tokens = torch.cat([square, *(linear_weights(at[a], grid[a], lines[a]) for a in range(3))], 1).float()
        means = [torch.zeros(len(sizes)).double().index_add(0, cell_of, x.double()) / sizes.double() for x in at]
        t, h, w = (linear_weights(means[a], grid[a], lattice[a]) for a in range(3))
        self.agents = (t[:, :, None, None] * h[:, None, :, None] * w[:, None, None]).flatten(1).float()

    def to(self, device: torch.device) -> Positions:
        """The same with its tables on ``device``."""
        self.tokens, self.agents = self.tokens.to(device), self.agents.to(device)
        return self


class PositionBias(nn.Module):
    """A bias between agents and tokens: for every head and lattice agent a map, and a vector per axis; zero at first.

    ``map`` (H, A, h, w), ``frames`` (H, A, Lt), ``rows`` (H, A, Lh), ``columns`` (H, A, Lw) with A = t*h*w agents of
    the lattice (t, h, w). Their sum, each interpolated to the token grid, is the bias; agents between those of the
    lattice get the mean of their neighbours by distance.
    """

    def __init__(self, heads: int, lattice: Grid, lines: Grid, **kind):
        super().__init__()
        agents = lattice[0] * lattice[1] * lattice[2]
        self.map = nn.Parameter(torch.zeros(heads, agents, lattice[1], lattice[2], **kind))
        for name, length in zip(("frames", "rows", "columns"), lines, strict=True):
            setattr(self, name, nn.Parameter(torch.zeros(heads, agents, length, **kind)))

    def of_agents(self, positions: Positions, device: torch.device) -> torch.Tensor:
        """The factor of the agents (1, n, H, R); that of the tokens is ``positions.tokens``."""
        table = torch.cat([self.map.flatten(2), self.frames, self.rows, self.columns], -1).to(device)
        return torch.einsum("na,har->nhr", positions.agents.to(table.dtype), table)[None]


class AgentWeights(nn.Module):
    """Trainable weights of agent attention at one layer; all zero at the start, where they change nothing.

    ``gather``: bias of agents reading keys. ``read``: bias of queries reading agents. ``taps`` (H*D, 3, 3, 3): a
    depth-wise convolution of the values over the grid; single images use its middle frame.
    """

    def __init__(self, place: Place, lattice: Grid, lines: Grid):
        super().__init__()
        source = place.projections.q
        if source is None:
            raise UnsupportedError(
                f"layer {place.name}: agent with form='trained' reads its sizes from the projection "
                f"{place.projections.names[0]}, which "
                f"{type(place.module).__name__} lacks; use form='free'"
            )
        kind = like(source)
        self.gather = PositionBias(place.heads, lattice, lines, **kind)
        self.read = PositionBias(place.heads, lattice, lines, **kind)
        self.taps = nn.Parameter(torch.zeros(source.out_features, 3, 3, 3, **kind))

    def factors(self, positions: Positions, device: torch.device) -> tuple[LowRank, LowRank]:
        """Biases of agents x keys and of queries x agents, for ``genkit.kernels.agent.agent_attention``."""
        gather, read = (part.of_agents(positions, device) for part in (self.gather, self.read))
        return LowRank(gather, positions.tokens), LowRank(positions.tokens, read)

    def local(self, v: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The convolution of grid values (B, N, H, D), zeros around the grid."""
        taps = self.taps.to(v.device, v.dtype)[:, None]
        x = v.flatten(2).transpose(1, 2).unflatten(2, grid)
        if grid[0] == 1:
            out = F.conv2d(x[:, :, 0], taps[:, :, 1], padding=1, groups=len(taps))
        else:
            out = F.conv3d(x, taps, padding=1, groups=len(taps))
        return out.flatten(2).transpose(1, 2).view_as(v)
