"""Key and value sharing between neighbouring tiles as rules of a control, plain or guided by masks of words.

Source: DiTCtrl, sections on KV-sharing and mask-guided KV-sharing. Its two masked attentions with a fusion behind them
are one attention in which a token of the picture sees text, and tokens of the picture on its own side of the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from genkit.control import Control, Forbid, ReadMaps, Rule, Take, Where
from genkit.control.regions import Seen
from genkit.errors import UsageError, explain
from genkit.families.lookup import family_of

NONE, KV, MASK = "none", "kv", "mask"
FORMS = (KV, MASK, NONE)
#: Published: steps 2 to 24 of 50, layers 25 to 29 of 30, threshold 0.3.
STEPS, LAYERS, THRESHOLD = (2 / 50, 25 / 50), 1 / 6, 0.3


@dataclass(frozen=True)
class Sharing:
    """Which tiles read their neighbour's keys and values, where and when.

    Args:
        form: "kv" = the later tile's queries read the earlier one's keys and values, text included in joint attention;
            "mask" = likewise, foreground reading foreground and the rest the rest; "none".
        layers: of the self- or joint attention, as ``genkit.Schedule`` takes them; None = the last sixth.
        steps: share of the steps, half-open.
        threshold: of a map that is normalised within its frame, from which on a token is foreground.
    """

    form: str = KV
    layers: str | None = None
    steps: tuple[float, float] = STEPS
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(explain("sharing", self.form, FORMS))
        low, high = self.steps
        if not 0 <= low <= high <= 1:
            raise UsageError(explain("sharing steps", self.steps, "two shares of the steps, the first not above"))
        if not 0 < self.threshold < 1:
            raise UsageError(explain("threshold", self.threshold, "a number above 0 and below 1"))

    def where(self, layers: int) -> Where:
        """Where it acts in a model of so many layers."""
        first = layers - max(int(layers * LAYERS + 1e-9), 1)
        chosen = f"{first}:" if self.layers is None else self.layers
        return Where(layers=chosen, start=self.steps[0], stop=self.steps[1])

    @property
    def acts(self) -> bool:
        """Whether any step of any layer is shared."""
        return self.form != NONE and self.steps[0] < self.steps[1]


@dataclass
class Masks:
    """Foreground of pairs of tiles, from the maps of words that a control reads while the model runs.

    Args:
        threshold: see :class:`Sharing`.
        control: whose maps; set once there is one.
        tokens: role of a row -> positions of its words among the text tokens.
        read: positions that are read of all rows; every role's are among them.
    """

    threshold: float
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    read: tuple[int, ...] = ()
    control: Control | None = None

    def of(self, role: str, seen: Seen) -> torch.Tensor | None:
        """bool (T, H, W), True = foreground; None before any layer of the call was read."""
        assert self.control is not None
        name = map_name(role)
        if name not in self.control.maps.names:
            return None
        found = self.control.maps.latest(name)
        if tuple(found.shape[1:4]) != seen.site.layout.grid:
            return None
        columns = [self.read.index(position) for position in self.tokens[role]]
        return foreground(found[-1, ..., columns].sum(-1), self.threshold)

    def side(self, source: str, target: str, asks: bool, front: bool) -> Callable[[Seen], torch.Tensor]:
        """A region of a pair's grid tokens, bool (tokens,).

        Args:
            asks: of the target, which asks; otherwise of the source, which is read.
            front: the foreground, otherwise the background. Frames in which either tile has none are in neither.
        """

        def region(seen: Seen) -> torch.Tensor:
            theirs, own = self.of(source, seen), self.of(target, seen)
            if theirs is None or own is None:
                return torch.zeros(seen.site.layout.grid_length, dtype=torch.bool)
            told = theirs.flatten(1).any(1) & own.flatten(1).any(1)
            mask = own if asks else theirs
            return ((mask if front else ~mask) & told[:, None, None]).flatten().cpu()

        return region


def foreground(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """bool (T, H, W): maps (T, H, W), normalised within every frame to 0..1, above a threshold."""
    low = maps.amin((1, 2), keepdim=True)
    return (maps - low) / (maps.amax((1, 2), keepdim=True) - low + 1e-6) > threshold


def map_name(role: str) -> str:
    """Under which a role's map of words is read."""
    return f"words of {role}"


def rules_of(pairs: Sequence[tuple[str, str]], sharing: Sharing, layers: int, masks: Masks | None) -> list[Rule]:
    """The rules by which later tiles read earlier ones.

    Args:
        pairs: roles (read, that reads).
        layers: of the model's self- or joint attention.
        masks: of the form "mask"; None otherwise.
    """
    if not sharing.acts:
        return []
    where = sharing.where(layers)
    rules: list[Rule] = [Take("kv", of=of, into=into, tokens="all", where=where) for of, into in pairs]
    if masks is None:
        return rules
    # One rule reads the words of all tiles; which are a row's own is looked up when the map is asked for.
    for role in dict.fromkeys(role for pair in pairs for role in pair):
        reading = Where(conditional=True, start=sharing.steps[0], stop=sharing.steps[1])
        rules.append(ReadMaps(name=map_name(role), of=role, tokens=masks.read, before=True, where=reading))
    for of, into in pairs:
        for front in (True, False):
            asking, hidden = masks.side(of, into, True, front), masks.side(of, into, False, not front)
            rules.append(Forbid(queries=asking, keys=hidden, into=into, where=where))
    return rules


def shared_layers(denoiser: Any) -> int:
    """Layers of self- or joint attention of a denoiser, of which :class:`Sharing` takes some."""
    return sum(site.role in ("self", "joint") for site in family_of(denoiser).find_sites(denoiser))
