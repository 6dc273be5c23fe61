"""Which key token a query token may see, in closed form: O(N) tables, never an N x N mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from genkit.errors import UsageError

NONE, ALL, WINDOW = 0, 1, 2
ABSENT, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Rule:
    """Token i of the queries sees token j of the keys iff ``visible[q_group[i], k_group[j]]`` is ``ALL``, or is
    ``WINDOW`` and on every axis ``q_lo[i] <= k_pos[j] < q_hi[i]`` and, with ``radius2`` given, the squared distance
    of ``q_pos[i]`` and ``k_pos[j]`` is below ``radius2``.

    Causal attention is a window whose upper end is the query's own position plus one. A dilation group is a
    contiguous range once positions count group by group. All tables live on one device.

    Args:
        q_lo, q_hi: (Nq, A) int32, half-open window of every query on A axes.
        k_pos: (Nk, A) int32, where every key sits.
        q_group: (Nq,) int8, k_group: (Nk,) or (B, Nk) int8: token groups, 0 <= group < G.
        visible: (Gq, Gk) int8 of NONE (0), ALL (1), WINDOW (2). A query group whose row is all NONE is switched off
            on purpose: output 0, log-sum-exp -inf.
        radius2: strict bound of the squared distance (a disc), or None.
        q_pos: (Nq, A) int32, centre of the disc; required with ``radius2``.

    Raises:
        UsageError: tables whose shapes, dtypes or values do not fit together.
    """

    q_lo: Tensor
    q_hi: Tensor
    k_pos: Tensor
    q_group: Tensor
    k_group: Tensor
    visible: Tensor
    radius2: int | None = None
    q_pos: Tensor | None = None

    def __post_init__(self):
        if torch.compiler.is_dynamo_compiling():
            return  # the checks below read values, which a compiled graph cannot
        put = object.__setattr__
        for name in ("q_lo", "q_hi", "k_pos", "q_pos"):
            if getattr(self, name) is not None:
                put(self, name, getattr(self, name).to(torch.int32).contiguous())
        for name in ("q_group", "k_group", "visible"):
            put(self, name, getattr(self, name).to(torch.int8).contiguous())
        if self.k_group.dim() == 1:
            put(self, "k_group", self.k_group[None])
        self._check()
        if self.radius2 is not None:
            # squared distances are whole numbers: d2 < r2 is the same as d2 < ceil(r2)
            put(self, "radius2", int(ceil(self.radius2)))

    def _check(self) -> None:
        if self.q_lo.dim() != 2 or self.q_lo.shape != self.q_hi.shape:
            raise UsageError(
                f"rule: q_lo and q_hi must both be (Nq, A), got {tuple(self.q_lo.shape)} and {tuple(self.q_hi.shape)}"
            )
        if not self.axes:
            raise UsageError("rule: the windows need at least one axis, got tables of shape (N, 0)")
        if self.k_pos.dim() != 2 or self.k_pos.shape[1] != self.axes:
            raise UsageError(f"rule: k_pos must be (Nk, {self.axes}), got {tuple(self.k_pos.shape)}")
        if self.q_group.shape != (self.n_q,):
            raise UsageError(f"rule: q_group must be ({self.n_q},), got {tuple(self.q_group.shape)}")
        if self.k_group.dim() != 2 or self.k_group.shape[1] != self.n_k:
            raise UsageError(f"rule: k_group must be ({self.n_k},) or (B, {self.n_k}), got {tuple(self.k_group.shape)}")
        if self.radius2 is not None and (self.q_pos is None or self.q_pos.shape != self.q_lo.shape):
            raise UsageError("rule: a disc (radius2) needs q_pos of the same shape as q_lo")
        if self.visible.dim() != 2 or not bool(((self.visible >= NONE) & (self.visible <= WINDOW)).all()):
            raise UsageError("rule: visible must be a (Gq, Gk) table of 0 (none), 1 (all), 2 (window)")
        for name, table, count in (
            ("q_group", self.q_group, self.visible.shape[0]),
            ("k_group", self.k_group, self.visible.shape[1]),
        ):
            if table.numel() and not (0 <= int(table.min()) and int(table.max()) < count):
                raise UsageError(
                    f"rule: {name} must hold groups 0 to {count - 1}, got {int(table.min())} to {int(table.max())}"
                )

    @classmethod
    def everything(cls, n_q: int, n_k: int, device: torch.device | str = "cpu") -> Rule:
        """Every query sees every key (dense attention)."""
        zeros = torch.zeros
        return cls(zeros(n_q, 1), zeros(n_q, 1), zeros(n_k, 1), zeros(n_q), zeros(n_k), torch.ones(1, 1)).to(device)

    @classmethod
    def causal(cls, n_q: int, n_k: int | None = None) -> Rule:
        """Query i sees keys 0..i, plus ``n_k - n_q`` earlier ones when there are more keys than queries."""
        n_k = n_q if n_k is None else n_k
        high = torch.arange(1, n_q + 1)[:, None] + (n_k - n_q)
        zeros = torch.zeros
        return cls(zeros(n_q, 1), high, torch.arange(n_k)[:, None], zeros(n_q), zeros(n_k), torch.full((1, 1), WINDOW))

    @property
    def n_q(self) -> int:
        """Number of query tokens."""
        return self.q_lo.shape[0]

    @property
    def n_k(self) -> int:
        """Number of key tokens."""
        return self.k_pos.shape[0]

    @property
    def axes(self) -> int:
        """Number of axes A of the windows."""
        return self.q_lo.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.q_lo.device

    def tensors(self) -> list[Tensor]:
        """The tables in a fixed order, ``q_pos`` last and only with a disc."""
        found = [self.q_lo, self.q_hi, self.k_pos, self.q_group, self.k_group, self.visible]
        return found if self.radius2 is None else [*found, self.q_pos]

    @classmethod
    def from_tensors(cls, tables: Sequence[Tensor], radius2: int | None) -> Rule:
        """Inverse of :meth:`tensors`; the tables are taken as they are."""
        names = ("q_lo", "q_hi", "k_pos", "q_group", "k_group", "visible")
        return cls._trusted(
            **dict(zip(names, tables, strict=False)), radius2=radius2, q_pos=tables[6] if radius2 is not None else None
        )

    @classmethod
    def _trusted(cls, **fields) -> Rule:
        """A rule from tables already checked: reading values again would wait for the device."""
        rule = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(rule, name, value)
        return rule

    def to(self, device: torch.device | str) -> Rule:
        """The same rule with its tables on ``device``."""
        return self._trusted(
            **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        )

    def hide_keys(self, mask: Tensor) -> Rule:
        """The same rule with some keys hidden from every query, per batch entry.

        Args:
            mask: (B, Nk) or (Nk,) bool, True where the key may be attended. Plans then carry lists per batch entry.
        """
        mask = mask.to(self.device)
        mask = mask[None] if mask.dim() == 1 else mask
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != self.n_k:
            raise UsageError(f"key mask must be bool (B, {self.n_k}), got {mask.dtype} {tuple(mask.shape)}")
        groups, hidden = self.visible.shape
        visible = torch.cat([self.visible, self.visible.new_zeros(groups, 1)], dim=1)
        k_group = torch.where(mask, self.k_group, torch.full_like(self.k_group[:1], hidden))
        return replace(self, visible=visible, k_group=k_group)

    def take(self, q_index: Tensor, k_index: Tensor) -> Rule:
        """The rule of reordered tokens: query i of the result is ``q_index[i]`` here; negative = padding (any row)."""
        qi, ki = q_index.clamp(min=0), k_index.clamp(min=0)
        return self._trusted(
            q_lo=self.q_lo[qi],
            q_hi=self.q_hi[qi],
            k_pos=self.k_pos[ki],
            q_group=self.q_group[qi],
            k_group=self.k_group[:, ki],
            visible=self.visible,
            radius2=self.radius2,
            q_pos=None if self.q_pos is None else self.q_pos[qi],
        )

    def off_queries(self) -> Tensor:
        """(Nq,) bool: queries whose group sees no group at all, by the visibility table."""
        return (self.visible == NONE).all(dim=1)[self.q_group.long()]

    def tile(self, q_index: Tensor, k_index: Tensor, batch: int = 0) -> Tensor:
        """Exact visibility of token pairs, by batch of tiles.

        Args:
            q_index: (..., M) int64 query tokens, k_index: (..., K) int64 key tokens; leading sizes agree.
            batch: row of ``k_group`` to use (taken modulo its rows).

        Returns:
            (..., M, K) bool.
        """
        if self.visible.numel() == 1 and int(self.visible) == WINDOW:
            return self._inside(q_index, k_index)
        group = self.k_group[batch % self.k_group.shape[0], k_index].long()[..., None, :]
        rows = self.visible[self.q_group[q_index].long()]
        code = rows.gather(-1, group.expand(*rows.shape[:-1], group.shape[-1]))
        everything = code == ALL
        windowed = code == WINDOW
        if not bool(windowed.any()):
            return everything
        return everything | (windowed & self._inside(q_index, k_index))

    def _inside(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        """Whether keys lie in the windows (and discs), groups left aside."""
        k_pos, lo, hi = self.k_pos[k_index], self.q_lo[q_index], self.q_hi[q_index]
        inside = None
        for axis in range(self.axes):
            at = k_pos[..., None, :, axis].contiguous()
            above = at >= lo[..., :, None, axis]
            inside = above if inside is None else inside.logical_and_(above)
            inside.logical_and_(at < hi[..., :, None, axis])
        if self.radius2 is not None:
            centre = self.q_pos[q_index]
            apart = sum((centre[..., :, None, a] - k_pos[..., None, :, a]) ** 2 for a in range(self.axes))
            inside.logical_and_(apart < self.radius2)
        return inside


def classify(rule: Rule, block_q: int, block_k: int, q_valid: Tensor, k_valid: Tensor) -> Tensor:
    """Sort every pair of blocks into FULL, PARTIAL or ABSENT from per-block hulls.

    FULL means every valid query sees every one of ``block_k`` keys; ABSENT means no valid pair is visible; both are
    claimed only when certain. Cost and arguments as for :func:`sure_pairs`.

    Returns:
        (B, blocks_q, blocks_k) int8, B the rows of ``rule.k_group``.
    """
    some, every = sure_pairs(rule, block_q, block_k, q_valid, k_valid)
    every &= (k_valid == block_k)[None, None, :]
    state = some.to(torch.int8)
    state[some & every] = FULL
    return state


def sure_pairs(rule: Rule, block_q: int, block_k: int, q_valid: Tensor, k_valid: Tensor) -> tuple[Tensor, Tensor]:
    """For every pair of blocks, whether some valid pair of tokens may be visible, and whether all certainly are.

    Cost: O(blocks_q * blocks_k * axes) per pair of token groups, no token pairs.

    Args:
        rule: tables of ``blocks_q * block_q`` queries and ``blocks_k * block_k`` keys (padding included).
        q_valid, k_valid: (blocks,) valid tokens at the front of each block.

    Returns:
        Two of (B, blocks_q, blocks_k) bool, B the rows of ``rule.k_group``.
    """
    q_real = torch.arange(block_q, device=rule.device) < q_valid[:, None]
    k_real = torch.arange(block_k, device=rule.device) < k_valid[:, None]
    q_group = rule.q_group.view(-1, block_q)
    k_group = rule.k_group.view(rule.k_group.shape[0], -1, block_k)
    queries = [(g, rows) for g in range(rule.visible.shape[0]) if bool((rows := (q_group == g) & q_real).any())]
    keys = [(g, rows) for g in range(rule.visible.shape[1]) if bool((rows := (k_group == g) & k_real).any())]
    visible = rule.visible.tolist()
    shape = (k_group.shape[0], q_group.shape[0], k_group.shape[1])
    some = torch.zeros(shape, dtype=torch.bool, device=rule.device)
    every = torch.ones_like(some)
    for g, in_q in queries:
        bounds = _query_hull(rule, in_q) if WINDOW in visible[g] else None
        for h, in_k in keys:
            both = in_q.any(-1)[None, :, None] & in_k.any(-1)[:, None, :]
            code = visible[g][h]
            if code == NONE:
                every &= ~both
            elif code == ALL:
                some |= both
            else:
                maybe, sure = _compare(rule, bounds, _key_hull(rule, in_k))
                some |= both & maybe
                every &= ~both | sure
    return some, every


def _extremes(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of ``values`` (..., block, A) over the tokens ``where`` (..., block) holds."""
    limit = torch.iinfo(torch.int32)
    low = torch.where(where[..., None], values, limit.max).amin(-2)
    high = torch.where(where[..., None], values, limit.min).amax(-2)
    return low.long(), high.long()


def _query_hull(rule: Rule, where: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    blocks = (*where.shape, rule.axes)
    hull = {"lo": _extremes(rule.q_lo.view(blocks), where), "hi": _extremes(rule.q_hi.view(blocks), where)}
    if rule.radius2 is not None:
        hull["pos"] = _extremes(rule.q_pos.view(blocks), where)
    return hull


def _key_hull(rule: Rule, where: Tensor) -> tuple[Tensor, Tensor]:
    return _extremes(rule.k_pos.view(*where.shape[1:], rule.axes)[None], where)


def _compare(rule: Rule, query: dict[str, tuple[Tensor, Tensor]], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(B, blocks_q, blocks_k) bool twice: some pair may be visible; all pairs certainly are."""
    first, last = key[0][:, None], key[1][:, None]
    maybe = sure = None
    for a in range(rule.axes):
        lo_min, lo_max = (edge[:, a][None, :, None] for edge in query["lo"])
        hi_min, hi_max = (edge[:, a][None, :, None] for edge in query["hi"])
        touches = (last[..., a] >= lo_min) & (first[..., a] < hi_max)
        covers = (first[..., a] >= lo_max) & (last[..., a] < hi_min)
        maybe = touches if maybe is None else maybe & touches
        sure = covers if sure is None else sure & covers
    if rule.radius2 is not None:
        near = far = 0
        for a in range(rule.axes):
            q_first, q_last = (edge[:, a][None, :, None] for edge in query["pos"])
            gap = torch.maximum(first[..., a] - q_last, q_first - last[..., a]).clamp(min=0)
            reach = torch.maximum(last[..., a] - q_first, q_last - first[..., a])
            near, far = near + gap.clamp(max=1 << 30) ** 2, far + reach.clamp(-(1 << 30), 1 << 30) ** 2
        maybe, sure = maybe & (near < rule.radius2), sure & (far < rule.radius2)
    return maybe, sure
