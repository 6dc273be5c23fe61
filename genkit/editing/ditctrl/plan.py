"""Where the tiles of a long clip lie, which prompt rules each of them, and how their answers become one.

Source: DiTCtrl (Cai et al., 2024, arXiv:2412.18597). Positions and lengths are in latent frames unless they say frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from genkit.errors import UsageError, counted, explain

if TYPE_CHECKING:
    import torch

#: Shots and frames of one clip at most: the whole clip is held in memory and decoded at once.
MOST_SHOTS, MOST_FRAMES = 100, 10_000
#: Published values: the tiles' overlap as a share of their length (6 of 13), and blocks between two prompts.
OVERLAP, TRANSITIONS = 6 / 13, 1


@dataclass(frozen=True)
class Tile:
    """A stretch of the clip that the model sees at once.

    Args:
        start: its first latent frame.
        shares: of every prompt in its text, summing to 1.
    """

    start: int
    shares: tuple[float, ...]

    @property
    def nearest(self) -> int:
        """The prompt with the largest share; of equal ones the later one."""
        return max(range(len(self.shares)), key=lambda shot: (self.shares[shot], shot))


@dataclass(frozen=True)
class Plan:
    """Tiles over a clip.

    Args:
        length: latent frames of a tile.
        tiles: in order; together they cover the clip.
        borders: where the shots change, as positions between 0 and the clip's length.
        each: frames behind a latent frame; the first latent frame is one frame.

    Example (the numbers of the publication's figure: two prompts, one block between them, overlap 6 of 13):
        >>> plan = Plan.published(2, 13, 6)
        >>> len(plan.tiles), plan.total, plan.frames
        (3, 27, 105)
        >>> [tile.shares for tile in plan.tiles]
        [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
        >>> Plan.timed((49, 56, 56), 13, 6).spans
        ((0, 49), (49, 105), (105, 161))
    """

    length: int
    tiles: tuple[Tile, ...]
    borders: tuple[float, ...]
    each: int = 4

    @classmethod
    def published(
        cls,
        shots: int,
        length: int,
        overlap: int,
        transitions: int = TRANSITIONS,
        longer_middle: int = 0,
        each: int = 4,
    ) -> Plan:
        """The plan of the publication: as many tiles as the prompts and the blocks between them need.

        Args:
            shots: number of prompts.
            length, overlap: of the tiles.
            transitions: tiles between two prompts whose text is mixed of both.
            longer_middle: further tiles of every prompt but the first and the last.
            each: see :class:`Plan`.

        Raises:
            UsageError: values that make no plan.
        """
        _check(length, overlap, transitions)
        if longer_middle < 0:
            raise UsageError(explain("longer_middle", longer_middle, "0 or more"))
        _check_shots(shots)
        stride = length - overlap
        last, borders = 0, []
        for shot in range(1, shots):
            last += longer_middle if shot > 1 else 0
            borders.append(length / 2 + stride * (last + (transitions + 1) / 2))
            last += transitions + 1
        starts = [stride * number for number in range(last + 1)]
        return cls(length, _tiles(starts, length, borders, (transitions + 1) * stride), tuple(borders), each)

    @classmethod
    def timed(
        cls, frames: Sequence[int], length: int, overlap: int, transitions: int = TRANSITIONS, each: int = 4
    ) -> Plan:
        """A plan for shots of given lengths: tiles spread evenly, their text mixed near the borders.

        With the lengths of a published plan it is that plan: text changes over ``transitions + 1`` strides around a
        border.

        Args:
            frames: of every shot; their sum is 1 plus a multiple of ``each``.
            length, overlap, transitions, each: as above; tiles overlap by ``overlap`` or more.

        Raises:
            UsageError: lengths that do not fit, with the nearest that do.
        """
        _check(length, overlap, transitions)
        _check_shots(len(frames))
        total = _latents(frames, each)
        if total < length:
            least = 1 + each * (length - 1)
            raise UsageError(
                f"the shots have {counted(sum(frames), 'frame')} together; the model makes {least} at once: "
                "give them more, or "
                "make the tiles shorter (--tile-frames, tile_frames)"
            )
        plan = cls._spread(frames, length, overlap, transitions, each)
        hidden = plan._hidden()
        if hidden is None:
            return plan
        least, longer = frames[hidden], list(frames)
        while cls._spread(longer, length, overlap, transitions, each)._hidden() == hidden:
            longer[hidden] += each
            least = longer[hidden]
        raise UsageError(
            f"shot {hidden + 1} has {counted(frames[hidden], 'frame')}, too few for the model to show its "
            "prompt (it makes "
            f"{1 + each * (length - 1)} at once): give it {least} or more, or take fewer frames a tile or less "
            "transition"
        )

    @classmethod
    def _spread(cls, frames: Sequence[int], length: int, overlap: int, transitions: int, each: int) -> Plan:
        """Tiles spread evenly over shots of given lengths."""
        total = 1 + (sum(frames) - 1) // each
        count = 1 + ceil((total - length) / (length - overlap))
        spacing = (total - length) / max(count - 1, 1)
        starts = [round(number * spacing) for number in range(count)]
        ends = [sum(frames[: shot + 1]) for shot in range(len(frames) - 1)]
        borders = [1 + (end - 1) / each for end in ends]
        ramp = (transitions + 1) * (spacing or 1.0)
        return cls(length, _tiles(starts, length, borders, ramp), tuple(borders), each)

    def _hidden(self) -> int | None:
        """The first shot whose prompt has less than half of the text of every tile."""
        shots = range(len(self.borders) + 1)
        return next((shot for shot in shots if max(tile.shares[shot] for tile in self.tiles) < 0.5), None)

    @property
    def total(self) -> int:
        """Latent frames of the clip."""
        return self.tiles[-1].start + self.length

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return 1 + self.each * (self.total - 1)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First frame and the one behind the last, of every shot."""
        ends = [round(1 + self.each * (border - 1)) for border in self.borders]
        return tuple(zip([0, *ends], [*ends, self.frames], strict=True))

    def window(self, tile: Tile) -> slice:
        """The tile's place on the axis of time."""
        return slice(tile.start, tile.start + self.length)

    def evaluations(self, pairs: bool = True) -> int:
        """Tiles that the model sees in a step and half of guidance."""
        count = len(self.tiles)
        return 2 * (count - 1) if pairs and count > 1 else count

    def words(self) -> str:
        """The shots' frames in a line."""
        return ", ".join(f"{shot + 1}: frames {first} to {end - 1}" for shot, (first, end) in enumerate(self.spans))


def triangle(length: int) -> torch.Tensor:
    """Weights (length,) of a tile's latent frames in the blend, float64: ``u = 2 (j + 1/2) / L``, ``min(u, 2 - u)``.

    Example:
        >>> round(float(triangle(13).sum()), 6), round(float(triangle(13)[0]), 4)
        (6.538462, 0.0769)
    """
    import torch

    rising = 2 * (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return torch.minimum(rising, 2 - rising)


class Blend:
    """Answers of overlapping tiles, added up with triangular weights and divided by them.

    At the same noisy latents clean latents, noise and velocity are affine in each other: blending one blends them all.

    Args:
        plan: of the clip. like: (B, C, T, h, w) latents of the whole clip.
    """

    def __init__(self, plan: Plan, like: torch.Tensor):
        self.plan = plan
        self.weights = triangle(plan.length).to(like).view(-1, 1, 1)
        self.sum = like.new_zeros(like.shape)
        self.mass = like.new_zeros(like.shape[2], 1, 1)

    def add(self, tile: Tile, answer: torch.Tensor) -> None:
        """Take a tile's answer (B, C, L, h, w) in."""
        window = self.plan.window(tile)
        self.sum[:, :, window] += self.weights * answer
        self.mass[window] += self.weights

    def result(self) -> torch.Tensor:
        """The clip's answer, (B, C, T, h, w)."""
        return self.sum / self.mass


def _tiles(starts: Sequence[int], length: int, borders: Sequence[float], ramp: float) -> tuple[Tile, ...]:
    """Tiles whose text is each prompt's by how far their middle is past its border."""
    found = []
    for start in starts:
        middle = start + length / 2
        past = [1.0, *(min(max(0.5 + (middle - border) / ramp, 0.0), 1.0) for border in borders), 0.0]
        found.append(Tile(start, tuple(now - then for now, then in zip(past, past[1:], strict=False))))
    return tuple(found)


def _check(length: int, overlap: int, transitions: int) -> None:
    if not 1 <= length:
        raise UsageError(explain("tile length", length, "1 latent frame or more"))
    if not 0 <= overlap < length:
        raise UsageError(
            explain(
                "--tile-overlap, overlap", overlap, f"0 to {counted(length - 1, 'latent frame')}: a tile has {length}"
            )
        )
    if not 0 <= transitions <= 10:
        raise UsageError(explain("transitions", transitions, "0 to 10"))


def _check_shots(count: int) -> None:
    if not 2 <= count <= MOST_SHOTS:
        few = "one prompt alone needs no storyboard; repeat it to make its clip longer" if count == 1 else None
        raise UsageError(explain("number of shots", count, f"2 to {MOST_SHOTS}", few))


def _latents(frames: Sequence[int], each: int) -> int:
    """Latent frames of a clip of these shots."""
    total = sum(frames)
    for shot, own in enumerate(frames):
        if isinstance(own, bool) or not isinstance(own, int) or own < 1:
            raise UsageError(explain(f"frames of shot {shot + 1}", own, "a whole number, 1 or more"))
    if total > MOST_FRAMES:
        raise UsageError(explain("frames of all shots together", total, f"up to {MOST_FRAMES}"))
    if (total - 1) % each:
        low = total - (total - 1) % each
        last, number = frames[-1], len(frames)
        nearest = " or ".join(str(last + other - total) for other in (low, low + each) if last + other - total > 0)
        raise UsageError(
            f"the shots have {counted(total, 'frame')} together, the model makes 1 plus a multiple of {each}: "
            f"give shot {number} "
            f"{counted(nearest, 'frame')} in place of {last}"
        )
    return 1 + (total - 1) // each
