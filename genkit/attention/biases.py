"""Biases by name: what a method's setting ``bias`` may say, as text or as objects, and what each adds per axis.

Every bias is a sum over the axes of the token grid of a function of the distance on that axis alone. So it is three
small tables per head, whatever the length of the sequence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from genkit.errors import UsageError, explain

Grid = tuple[int, int, int]
#: Per axis (time, height, width): (heads|1, 2 n - 1), what distance d adds at place d + n - 1; None = nothing.
Tables = list[torch.Tensor | None]
AXES = ("t", "h", "w")
_MOST = 1e6


@dataclass(frozen=True)
class BiasKind:
    """One term of a bias. Distances are between grid tokens, query minus key, in tokens of the axis (t: latent frames).

    A term is written ``KIND`` or ``KIND:key=value:key=value``, terms are joined by ``+``.
    """

    kind: ClassVar[str] = ""
    #: whether heads differ, before anything is learned
    by_head: ClassVar[bool] = False

    @property
    def trains(self) -> bool:
        """Whether the term has weights."""
        return False

    def weights(self, heads: int) -> dict[str, torch.Tensor]:
        """Names and first values (float64) of what is learned; empty without."""
        return {}

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor]) -> Tables:
        """What the term adds on a grid, differentiable in ``weights``; float64 where it has none."""
        raise TypeError(f"{type(self).__name__} defines no tables()")

    def __str__(self) -> str:
        parts = [self.kind]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name}={_text(value)}")
        return ":".join(parts)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _check_number(kind: str, name: str, value: Any, low: float, above: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or (above and value == low) or value > _MOST:
        raise UsageError(explain(f"bias {kind}, {name}", value, f"a number {'>' if above else '>='} {low:g}"))


def _check_flag(kind: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UsageError(explain(f"bias {kind}, {name}", value, "true or false"))


def _check_some(term: BiasKind, what: str) -> None:
    if all(getattr(term, axis) is None for axis in AXES):
        raise UsageError(f"bias {term.kind} needs {what} on an axis or more: {term.kind}:t=..:h=..:w=..")


def _distances(n: int) -> torch.Tensor:
    return (torch.arange(2 * n - 1) - (n - 1)).abs().double()


def _beyond(n: int, free: float) -> torch.Tensor:
    return (_distances(n) - free).clamp(min=0)


@dataclass(frozen=True)
class Distance(BiasKind):
    """Soft window: ``-(|d| - free)^2 / (2 s^2)`` summed over the axes that have a width s.

    Args:
        t, h, w: width s of an axis, in tokens, or as text in percent of the axis (``25%``); None = no bias there.
        free_t, free_h, free_w: distance without penalty (the length that a model was trained at, for instance).
        learned: the factors ``1 / (2 s^2)`` are weights, one per head and axis.
    """

    t: float | str | None = None
    h: float | str | None = None
    w: float | str | None = None
    free_t: float = 0.0
    free_h: float = 0.0
    free_w: float = 0.0
    learned: bool = False
    kind: ClassVar[str] = "distance"

    def __post_init__(self):
        _check_some(self, "a width")
        _check_flag(self.kind, "learned", self.learned)
        for axis in AXES:
            value = getattr(self, axis)
            if isinstance(value, str):
                value = _percent(self.kind, axis, value)
                if self.learned:
                    raise UsageError(
                        f"bias distance, {axis}: a learned width is in tokens, not a share of a grid; got "
                        f"{getattr(self, axis)!r}"
                    )
            if value is not None:
                _check_number(self.kind, axis, value, 0, above=True)
            _check_number(self.kind, f"free_{axis}", getattr(self, f"free_{axis}"), 0)
            if getattr(self, f"free_{axis}") and value is None:
                raise UsageError(f"bias distance: free_{axis} has no effect without {axis}; leave it out, or give both")

    @property
    def trains(self) -> bool:
        """See :attr:`BiasKind.trains`."""
        return self.learned

    def sigma(self, axis: int, length: int) -> float | None:
        """Width in tokens on an axis of a length."""
        value = getattr(self, AXES[axis])
        return _percent(self.kind, AXES[axis], value) * length if isinstance(value, str) else value

    def free(self, axis: int) -> float:
        """Distance without penalty on an axis."""
        return float(getattr(self, f"free_{AXES[axis]}"))

    def weights(self, heads: int) -> dict[str, torch.Tensor]:
        """See :meth:`BiasKind.weights`."""
        if not self.learned:
            return {}
        found = {}
        for axis, name in enumerate(AXES):
            sigma = self.sigma(axis, 1)
            if sigma is not None:
                found[name] = torch.full((heads,), 1 / (2 * sigma**2), dtype=torch.float64)
        return found

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor]) -> Tables:
        """See :meth:`BiasKind.tables`."""
        found: Tables = []
        for axis, n in enumerate(grid):
            sigma = self.sigma(axis, n)
            if sigma is None:
                found.append(None)
                continue
            square = _beyond(n, self.free(axis)).square()[None]
            if self.learned:
                weight = weights[AXES[axis]]
                found.append(-weight[:, None] * square.to(weight))
            else:
                found.append(-square / (2 * sigma**2))
        return found


@dataclass(frozen=True)
class Alibi(BiasKind):
    """Two-sided ALiBi on the grid: ``-m_h * sum_a weight_a |d_a|`` with slopes ``m_h = slope * 2^(-8 (h + 1) / H)``.

    Args:
        t, h, w: weight of an axis; with none given 1 on every axis, otherwise 0 where left out.
        slope: factor of all slopes; published 1.
        learned: the slopes are weights, one per head.
    """

    t: float | None = None
    h: float | None = None
    w: float | None = None
    slope: float = 1.0
    learned: bool = False
    kind: ClassVar[str] = "alibi"
    by_head: ClassVar[bool] = True

    def __post_init__(self):
        _check_flag(self.kind, "learned", self.learned)
        _check_number(self.kind, "slope", self.slope, 0, above=True)
        for axis in AXES:
            if getattr(self, axis) is not None:
                _check_number(self.kind, axis, getattr(self, axis), 0, above=True)

    @property
    def trains(self) -> bool:
        """See :attr:`BiasKind.trains`."""
        return self.learned

    def slopes(self, heads: int) -> torch.Tensor:
        """(heads,) float64 first slopes."""
        return self.slope * 2.0 ** (-8 * (torch.arange(heads, dtype=torch.float64) + 1) / heads)

    def weights(self, heads: int) -> dict[str, torch.Tensor]:
        """See :meth:`BiasKind.weights`."""
        return {"slopes": self.slopes(heads)} if self.learned else {}

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor]) -> Tables:
        """See :meth:`BiasKind.tables`."""
        given = [getattr(self, axis) for axis in AXES]
        factors = [1.0] * 3 if given == [None] * 3 else given
        slopes = weights["slopes"] if self.learned else self.slopes(heads)
        return [
            None if factor is None else -slopes[:, None] * (factor * _distances(n)).to(slopes)
            for factor, n in zip(factors, grid, strict=True)
        ]


@dataclass(frozen=True)
class Frames(BiasKind):
    """Distance in time, the same in all heads: ``-slope * max(|dt| - free, 0)``.

    Args:
        slope: logits per latent frame.
        free: frames without penalty.
        learned: the slope is a weight, one per head.
    """

    slope: float = 0.1
    free: float = 0.0
    learned: bool = False
    kind: ClassVar[str] = "frames"

    def __post_init__(self):
        _check_flag(self.kind, "learned", self.learned)
        _check_number(self.kind, "slope", self.slope, 0, above=True)
        _check_number(self.kind, "free", self.free, 0)

    @property
    def trains(self) -> bool:
        """See :attr:`BiasKind.trains`."""
        return self.learned

    def weights(self, heads: int) -> dict[str, torch.Tensor]:
        """See :meth:`BiasKind.weights`."""
        return {"slopes": torch.full((heads,), self.slope, dtype=torch.float64)} if self.learned else {}

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor]) -> Tables:
        """See :meth:`BiasKind.tables`."""
        beyond = _beyond(grid[0], self.free)[None]
        if not self.learned:
            return [-self.slope * beyond, None, None]
        return [-weights["slopes"][:, None] * beyond.to(weights["slopes"]), None, None]


@dataclass(frozen=True)
class Learned(BiasKind):
    """Relative position tables: a weight per head, axis and distance, all zero at first. Beyond ``reach`` nothing is
    added, so the same weights serve grids of any size.

    Args:
        t, h, w: reach of an axis in tokens; None = no table.
    """

    t: int | None = None
    h: int | None = None
    w: int | None = None
    kind: ClassVar[str] = "table"
    by_head: ClassVar[bool] = True

    def __post_init__(self):
        _check_some(self, "a reach")
        for axis in AXES:
            value = getattr(self, axis)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096):
                raise UsageError(explain(f"bias table, {axis}", value, "a whole number from 1 to 4096"))

    @property
    def trains(self) -> bool:
        """See :attr:`BiasKind.trains`."""
        return True

    def weights(self, heads: int) -> dict[str, torch.Tensor]:
        """See :meth:`BiasKind.weights`."""
        reaches = {axis: getattr(self, axis) for axis in AXES}
        return {
            axis: torch.zeros(heads, 2 * reach + 1, dtype=torch.float64)
            for axis, reach in reaches.items()
            if reach is not None
        }

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor]) -> Tables:
        """See :meth:`BiasKind.tables`."""
        found: Tables = []
        for name, n in zip(AXES, grid, strict=True):
            if name not in weights:
                found.append(None)
                continue
            stored = weights[name]
            more = n - 1 - stored.shape[1] // 2  # negative cuts
            found.append(torch.nn.functional.pad(stored, (more, more)))
        return found


@dataclass(frozen=True)
class Svd:
    """Not a bias: asks for factors of low rank instead of the exact tables, by SVD per head and axis.

    Args:
        error: largest difference from the exact bias, in logits (0.05 changes a weight by 5 %).
        rank: largest rank in all instead.
    """

    error: float | None = None
    rank: int | None = None
    kind: ClassVar[str] = "svd"

    def __post_init__(self):
        if (self.error is None) == (self.rank is None):
            raise UsageError("bias svd needs one of error=LOGITS and rank=NUMBER, for instance svd:error=0.05")
        if self.error is not None:
            _check_number(self.kind, "error", self.error, 0)
        if self.rank is not None and (
            isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= 512
        ):
            raise UsageError(explain("bias svd, rank", self.rank, "a whole number from 1 to 512"))

    def __str__(self) -> str:
        return f"svd:error={self.error:g}" if self.error is not None else f"svd:rank={self.rank}"


KINDS: dict[str, type] = {cls.kind: cls for cls in (Distance, Alibi, Frames, Learned, Svd)}


@dataclass(frozen=True)
class BiasSpec:
    """The terms of a bias, and how it is carried.

    Args:
        terms: added up. svd: ask for low-rank factors; None = exact.
    """

    terms: tuple[BiasKind, ...]
    svd: Svd | None = None

    def __post_init__(self):
        if not self.terms:
            raise UsageError(f"bias: svd alone is no bias; add one of {', '.join(k for k in KINDS if k != 'svd')}")

    @property
    def trains(self) -> bool:
        """Whether any term has weights."""
        return any(term.trains for term in self.terms)

    @property
    def by_head(self) -> bool:
        """Whether heads have different biases."""
        return any(term.by_head or term.trains for term in self.terms)

    def tables(self, grid: Grid, heads: int, weights: Mapping[str, torch.Tensor] | None = None) -> Tables:
        """The sum of all terms per axis; see :data:`Tables`.

        Args:
            weights: ``"0.slopes"``: number of the term and name; those of a layer. Missing ones are the first values.
        """
        total: Tables = [None, None, None]
        for number, term in enumerate(self.terms):
            own = {name: first for name, first in term.weights(heads).items()}
            for name in own:
                own[name] = (weights or {}).get(f"{number}.{name}", own[name])
            for axis, table in enumerate(term.tables(grid, heads, own)):
                before = total[axis]
                if table is not None:
                    total[axis] = table if before is None else before + table.to(before.device)
        return total

    def __str__(self) -> str:
        return "+".join(map(str, (*self.terms, *(() if self.svd is None else (self.svd,)))))


def spec_of(bias: Any) -> BiasSpec:
    """A bias from what a user gives: text, a term, a spec, or several of these.

    Raises:
        UsageError: an unknown kind or setting, or a value that has no meaning.
    """
    if isinstance(bias, BiasSpec):
        return bias
    if isinstance(bias, (BiasKind, Svd)):
        bias = str(bias)
    if isinstance(bias, (list, tuple)) and bias:
        bias = "+".join(str(each) for each in bias)
    if not isinstance(bias, str) or not bias.strip():
        raise UsageError(explain("bias", bias, f"text such as 'alibi:t=1' (kinds: {', '.join(KINDS)})"))
    return _parsed("".join(bias.split()))


@lru_cache(maxsize=256)
def _parsed(text: str) -> BiasSpec:
    terms, svd = [], None
    for part in _parts(text):
        name, *pairs = part.split(":")
        if name not in KINDS:
            raise UsageError(explain("bias", name, list(KINDS)))
        made = _build(name, pairs)
        if not isinstance(made, Svd):
            terms.append(made)
        elif svd is not None:
            raise UsageError(f"bias: svd is given twice in {text!r}")
        else:
            svd = made
    return BiasSpec(tuple(terms), svd)


def _parts(text: str) -> list[str]:
    """Terms between plus signs; ``1e+3`` is a number."""
    parts: list[str] = []
    for piece in text.split("+"):
        number = parts and parts[-1][-1:] == "e" and parts[-1][-2:-1].isdigit() and piece[:1].isdigit()
        if number:
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return parts


def _build(name: str, pairs: list[str]) -> Any:
    cls = KINDS[name]
    fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if key not in fields:
            raise UsageError(explain(f"setting of bias {name}", key, list(fields)))
        if not sign or not value or key in values:
            raise UsageError(explain(f"bias {name}, {key}", pair, f"one {key}=value"))
        values[key] = _value(name, key, fields[key], value)
    return cls(**values)


def _value(name: str, key: str, type_text: str, value: str) -> Any:
    if type_text == "bool":
        if value.lower() not in ("true", "false"):
            raise UsageError(explain(f"bias {name}, {key}", value, "true or false"))
        return value.lower() == "true"
    if "str" in type_text and value.endswith("%"):
        return value
    try:
        return int(value) if type_text.startswith("int") else float(value)
    except ValueError as error:
        kind = "a whole number" if type_text.startswith("int") else "a number"
        more = ", or a share of the axis such as 25%" if "str" in type_text else ""
        raise UsageError(explain(f"bias {name}, {key}", value, kind + more)) from error


def _percent(kind: str, axis: str, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 100:
        raise UsageError(explain(f"bias {kind}, {axis}", text, "a number > 0, or a share of the axis such as '25%'"))
    return share
