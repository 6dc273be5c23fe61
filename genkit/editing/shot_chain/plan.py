"""Which calls of a model make a chain of shots: what each is given of the clip before it, and what it adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genkit.errors import UsageError, counted, explain


@dataclass(frozen=True)
class Window:
    """One call of the model.

    Args:
        shot: whose prompt it has, counted from 0.
        given: frames that it is given, the last ones of what stands before it; 0 = nothing.
        new: frames that it adds.
    """

    shot: int
    given: int
    new: int

    @property
    def frames(self) -> int:
        """Frames of the call."""
        return self.given + self.new


@dataclass(frozen=True)
class ChainPlan:
    """The calls of a chain.

    Args:
        windows: in order.
        before: frames of the clip that is continued; 0 = the chain begins with its first shot.
    """

    windows: tuple[Window, ...]
    before: int = 0

    @classmethod
    def of(
        cls, shots: int, frames: Sequence[int] | None, window: int, each: int, border: int, within: int, before: int = 0
    ) -> ChainPlan:
        """Lay the windows out.

        Args:
            shots: how many.
            frames: of every shot; None = as many as one window adds.
            window: frames that the model makes at once, 1 plus a multiple of ``each``.
            each: frames behind a latent frame.
            border: frames of the shot before that the next one is given.
            within: frames that the windows of one shot give each other; also what a clip gives the shot that
                continues it.
            before: frames of the clip that is continued.

        Raises:
            UsageError: a length that is none of the model's.
        """
        if isinstance(window, bool) or window <= each or (window - 1) % each:
            raise UsageError(explain("frames at once", window, f"1 plus a multiple of {each}, {1 + each} or more"))
        for name, given in (("--border-frames, border_frames", border), ("within_frames", within)):
            if given < 1 or (given - 1) % each or given >= window:
                allowed = f"1 plus a multiple of {each}, below the {window} made at once"
                raise UsageError(explain(f"frames carried over ({name})", given, allowed))
        if frames is not None and len(frames) != shots:
            raise UsageError(
                explain("frames", counted(len(frames), "number"), f"one for each of {counted(shots, 'shot')}")
            )
        made: list[Window] = []
        for shot in range(shots):
            given = border if shot else min(within, _whole(before, each)) if before else 0
            length = (window - given) if frames is None else frames[shot]
            _check(shot, length, each, 0 if given else 1)
            made += _windows(shot, length, given, window, each, within)
        return cls(tuple(made), before)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First frame and the one behind the last, of every shot, in the whole clip."""
        found, place = [], self.before
        for shot in range(self.windows[-1].shot + 1):
            end = place + sum(window.new for window in self.windows if window.shot == shot)
            found.append((place, end))
            place = end
        return tuple(found)

    @property
    def frames(self) -> int:
        """Frames of the whole clip, with those of the clip that is continued."""
        return self.before + sum(window.new for window in self.windows)

    def words(self) -> str:
        """Which frames are whose, for people."""
        return ", ".join(f"{number + 1}: frames {a} to {b - 1}" for number, (a, b) in enumerate(self.spans))


def lengths(total: int, shots: int, each: int, before: int = 0, kept: int | None = None) -> list[int]:
    """A number of frames shared among shots as evenly as latent frames go, the first ones longer.

    Args:
        total: of the clip that comes out.
        shots: how many.
        each: frames behind a latent frame.
        before: frames of the clip that is continued.
        kept: of them, those that are part of what comes out; None = all.

    Raises:
        UsageError: no such clip.
    """
    kept = before if kept is None else kept
    start = kept if before else 1
    least = start + each * (shots - (not before))
    left = total - start
    if total < least or left % each:
        low = max(total - left % each, least)
        begun = f"the clip's {kept} plus a" if kept else "a" if before else "1 plus a"
        near = f"{low}" if low > total else f"{low} or {low + each}"
        raise UsageError(f"--num-frames: got {total}, allowed: {begun} multiple of {each}; take {near}")
    units = left // each + (not before)
    parts = [units // shots + (number < units % shots) for number in range(shots)]
    return [each * part - (each - 1 if not before and number == 0 else 0) for number, part in enumerate(parts)]


def _whole(frames: int, each: int) -> int:
    """The most frames of a clip that make whole latent frames, its first alone."""
    return 1 + (frames - 1) // each * each


def _check(shot: int, length: int, each: int, alone: int) -> None:
    """Refuse a length that has no latent frames; ``alone``: frames behind the first latent frame of the shot, or 0."""
    if length >= max(alone, 1) and (length - alone) % each == 0 and length > 0:
        return
    low = alone + max((length - alone) // each, 0) * each
    near = " or ".join(str(each_) for each_ in (low, low + each) if each_ > 0)
    rule = f"1 plus a multiple of {each}" if alone else f"a multiple of {each}, for it goes on from a frame before it"
    raise UsageError(f"shot {shot + 1} has {counted(length, 'frame')}; take {near}: {rule}")


def _windows(shot: int, length: int, given: int, window: int, each: int, within: int) -> list[Window]:
    """A shot's windows, about as long as each other."""
    first = window - given
    count = 1 if length <= first else 1 + -(-(length - first) // (window - within))
    made: list[Window] = []
    for left in range(count, 0, -1):
        carried = within if made else given
        if left == 1:
            new = length
        else:
            alone = 0 if carried else 1
            new = min(alone + round((length / left - alone) / each) * each, window - carried)
            most = (left - 1) * (window - within)
            new = max(new, length - most)
        made.append(Window(shot, carried, new))
        length -= new
    return made
