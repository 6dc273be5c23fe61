"""The steps of a call: what each reads of the sequence, and what it does to the running state.

A step is a function of a piece of the inputs and a state ``(kv, z)``; it returns output rows (or None) and the next
state. Later tokens never touch earlier rows, not even as zero times NaN, but inside a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genkit.kernels.linear_state.problem import TENSORS, Features

State = tuple[Tensor, Tensor]
Piece = dict[str, Any]  # tensors, or None where an input is not given

# Tokens summed or read by one product: larger copies leave the cache.
SUM_CHUNK = 4096
# Tokens that attend to each other directly in mode "token".
TOKEN_CHUNK = 64
# The same for channel softmax, whose weights have one more axis.
CHANNEL_CHUNK = 16
# Groups whose states are made by one product.
GROUPS = 32

_QUERIES = ("q", "q_den")
_KEYS = ("k", "v", "k_den", "key_weight", "value_weight")


@dataclass(frozen=True)
class Step:
    """One step of the chain.

    Args:
        run: ``(piece, state) -> (output rows or None, state)``.
        names: the inputs it reads. span: their tokens. times: their entries of ``decay`` (B, T, H).
    """

    run: Callable[[Piece, State], tuple[Tensor | None, State]]
    names: tuple[str, ...]
    span: slice
    times: slice | None = None

    def piece(self, x: Features) -> Piece:
        """The inputs of the step, in the precision of the sums."""
        wholes = {name: getattr(x, name) for name in self.names}
        return {name: None if whole is None else self.part(name, whole).to(x.wide) for name, whole in wholes.items()}

    def part(self, name: str, whole: Tensor) -> Tensor:
        """A view on the part of an input, or of its gradient."""
        if name == "decay":
            return whole if whole.dim() == 1 or self.times is None else whole[:, self.times]
        return whole[:, self.span]


def program(x: Features) -> list[Step]:
    """The steps of a call, in order. Output rows of the steps that have some, joined, are the output."""
    n = x.k.shape[1]
    soft = "softmax" if x.softmax else "sum"
    if x.mode == "all":
        add = [Step(_ABSORB[soft], _KEYS, span) for span in spans(0, n, SUM_CHUNK)]
        return add + _reading(x, 0, x.q.shape[1])
    if x.mode == "token":
        size = CHANNEL_CHUNK if x.softmax else TOKEN_CHUNK
        run = partial(_token_softmax if x.softmax else _tokens, size=size, eps=x.eps)
        return [Step(run, TENSORS, span, span) for span in spans(0, n, size * GROUPS)]
    size = x.group or n
    if size * 2 <= SUM_CHUNK:
        many = max(1, min(GROUPS, SUM_CHUNK // size))
        run = partial(_group_softmax if x.softmax else _groups, size=size, eps=x.eps)
        return [
            Step(run, TENSORS, span, slice(span.start // size, -(-span.stop // size)))
            for span in spans(0, n, size * many)
        ]
    found: list[Step] = []
    for number, group in enumerate(spans(0, n, size)):
        if x.decay is not None:
            found.append(Step(_forget, ("decay",), slice(0, 0), slice(number, number + 1)))
        found += [Step(_ABSORB[soft], _KEYS, span) for span in spans(group.start, group.stop, SUM_CHUNK)]
        found += _reading(x, group.start, group.stop)
    return found


def spans(start: int, stop: int, size: int) -> list[slice]:
    """Pieces of ``size`` tokens; the last one may be short."""
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _reading(x: Features, start: int, stop: int) -> list[Step]:
    return [Step(partial(_read, eps=x.eps), _QUERIES, span) for span in spans(start, stop, SUM_CHUNK)]


def weighted(piece: Piece, softmax: bool) -> tuple[Tensor, Tensor | None]:
    """Values carrying all weights of the numerator, and the keys of the denominator carrying theirs."""
    v, den = piece["v"], piece["k_den"]
    if piece["value_weight"] is not None:
        v = v * piece["value_weight"][..., None]
    if piece["key_weight"] is not None and not softmax:
        v = v * piece["key_weight"][..., None]
        den = den if den is None else den * piece["key_weight"][..., None]
    return v, den


def _logits(piece: Piece) -> Tensor:
    k, weight = piece["k"], piece["key_weight"]
    return k if weight is None else k + weight.log()[..., None]


def read(q: Tensor, q_den: Tensor | None, state: State, eps: float) -> Tensor:
    """What queries (B, N, H, D) read from a state: (B, N, H, Dv)."""
    out = torch.einsum("bnhd,bhde->bnhe", q, state[0])
    return out if q_den is None else out / (torch.einsum("bnhd,bhd->bnh", q_den, state[1])[..., None] + eps)


def _read(piece: Piece, state: State, eps: float) -> tuple[Tensor, State]:
    return read(piece["q"], piece["q_den"], state, eps), state


def _forget(piece: Piece, state: State) -> tuple[None, State]:
    factor = piece["decay"].exp()
    factor = factor if factor.dim() == 1 else factor[:, 0]
    return None, (state[0] * factor[..., None, None], state[1] * factor[..., None])


def _absorb(piece: Piece, state: State) -> tuple[None, State]:
    v, den = weighted(piece, False)
    kv, z = state
    return None, (kv + torch.einsum("bnhd,bnhe->bhde", piece["k"], v), z if den is None else z + den.sum(1))


def _absorb_softmax(piece: Piece, state: State) -> tuple[None, State]:
    v, _ = weighted(piece, True)
    return None, merged(state, _softmax_state(_logits(piece)[:, None], v[:, None], 0))


_ABSORB = {"sum": _absorb, "softmax": _absorb_softmax}


def finite(z: Tensor) -> Tensor:
    """A log-sum-exp to subtract: that of nothing is 0, since -inf minus -inf would be NaN."""
    return z.masked_fill(z == -torch.inf, 0)


def merged(one: State, two: State) -> State:
    """Two states of channel softmax as one."""
    total = torch.logaddexp(one[1], two[1])
    first, second = ((z - finite(total)).exp()[..., None] for z in (one[1], two[1]))
    return first * one[0] + second * two[0], total


def _softmax_state(logits: Tensor, v: Tensor, at: int) -> State:
    """The state of group ``at`` of logits (B, T, n, H, D) and values (B, T, n, H, Dv). Keys at -inf are hidden."""
    logits, v = logits[:, at], v[:, at]
    top = finite(logits.amax(1))
    weights = (logits - top[:, None]).exp()
    total = weights.sum(1)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    kv = torch.einsum("bnhd,bnhe->bhde", weights / total[:, None], v)
    return kv, (top + total.log()).masked_fill(empty, -torch.inf)


def _in_groups(x: Any, size: int, fill: float = 0.0) -> Any:
    """(B, n, ...) to (B, T, size, ...), the last group filled up."""
    if x is None:
        return None
    lacking = -x.shape[1] % size
    if lacking:
        x = torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, lacking), value=fill)
    return x.unflatten(1, (-1, size))


def _ungrouped(x: Tensor, count: int) -> Tensor:
    return x.flatten(1, 2)[:, :count]


def _groups(piece: Piece, state: State, size: int, eps: float) -> tuple[Tensor, State]:
    """Groups of tokens, each seeing itself and all before."""
    v, den = weighted(piece, False)
    q, k, q_den, decay = piece["q"], piece["k"], piece["q_den"], piece["decay"]
    kv = torch.einsum("btnhd,btnhe->bthde", _in_groups(k, size), _in_groups(v, size))
    z = None if den is None else _in_groups(den, size).sum(2)
    seen, mass = [], []
    for t in range(kv.shape[1]):
        if decay is not None:
            _, state = _forget({"decay": decay if decay.dim() == 1 else decay[:, t : t + 1]}, state)
        state = (state[0] + kv[:, t], state[1] if z is None else state[1] + z[:, t])
        seen.append(state[0])
        mass.append(state[1])
    out = torch.einsum("btnhd,bthde->btnhe", _in_groups(q, size), torch.stack(seen, 1))
    if q_den is not None:
        total = torch.einsum("btnhd,bthd->btnh", _in_groups(q_den, size), torch.stack(mass, 1))
        out = out / (total[..., None] + eps)
    return _ungrouped(out, q.shape[1]), state


def _tokens(piece: Piece, state: State, size: int, eps: float) -> tuple[Tensor, State]:
    """Token-causal: inside a chunk directly, everything before it through the state."""
    v, den = weighted(piece, False)
    b, n, h, _ = piece["q"].shape
    q, k, v, den, q_den = (_in_groups(x, size) for x in (piece["q"], piece["k"], v, den, piece["q_den"]))
    past = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    log, weight = None, past.to(q.dtype)
    if piece["decay"] is not None:
        each = piece["decay"]
        each = each[None, None].expand(b, n, h) if each.dim() == 1 else each
        log = _in_groups(each, size).cumsum(2)
        apart = (log[:, :, :, None] - log[:, :, None]).permute(0, 1, 4, 2, 3)
        weight = apart.masked_fill(~past, -torch.inf).exp()

    def inside(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("btihd,btjhd->bthij", a, b) * weight

    out = torch.einsum("bthij,btjhe->btihe", inside(q, k), v)
    mass = None if q_den is None else inside(q_den, den).sum(-1).transpose(2, 3)
    left = 1.0 if log is None else (log[:, :, -1:] - log).exp()[..., None]
    kv = torch.einsum("btnhd,btnhe->bthde", k * left, v)
    z = None if den is None else (den * left).sum(2)
    before, before_z = [], []
    for t in range(kv.shape[1]):
        before.append(state[0])
        before_z.append(state[1])
        if log is not None:
            factor = log[:, t, -1].exp()[..., None]
            state = (state[0] * factor[..., None], state[1] * factor)
        state = (state[0] + kv[:, t], state[1] if z is None else state[1] + z[:, t])
    faded = 1.0 if log is None else log.exp()[..., None]
    out = out + torch.einsum("btnhd,bthde->btnhe", q * faded, torch.stack(before, 1))
    if mass is not None:
        mass = mass + torch.einsum("btnhd,bthd->btnh", q_den * faded, torch.stack(before_z, 1))
        out = out / (mass[..., None] + eps)
    return _ungrouped(out, n), state


def _group_softmax(piece: Piece, state: State, size: int, eps: float) -> tuple[Tensor, State]:
    """Channel softmax over groups of tokens, each seeing itself and all before."""
    v, _ = weighted(piece, True)
    logits, v = _in_groups(_logits(piece), size, -torch.inf), _in_groups(v, size)
    seen = []
    for t in range(logits.shape[1]):
        state = merged(state, _softmax_state(logits, v, t))
        seen.append(state[0])
    out = torch.einsum("btnhd,bthde->btnhe", _in_groups(piece["q"], size), torch.stack(seen, 1))
    return _ungrouped(out, piece["q"].shape[1]), state


def _token_softmax(piece: Piece, state: State, size: int, eps: float) -> tuple[Tensor, State]:
    """Token-causal channel softmax. Running totals stay in logarithms: the ratio of two sums of exponentials may
    overflow either of them."""
    v, _ = weighted(piece, True)
    logits, v = _in_groups(_logits(piece), size, -torch.inf), _in_groups(v, size)
    q = _in_groups(piece["q"], size)
    before, before_z = [], []
    for t in range(logits.shape[1]):
        before.append(state[0])
        before_z.append(state[1])
        state = merged(state, _softmax_state(logits, v, t))
    start = torch.stack(before_z, 1)[:, :, None]
    total = finite(torch.logaddexp(logits.logcumsumexp(2), start))
    past = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()[:, :, None, None]
    weight = (logits[:, :, None] - total[:, :, :, None]).masked_fill(~past, -torch.inf).exp()
    out = torch.einsum("btijh,btjhe->btihe", (weight * q[:, :, :, None]).sum(-1), v)
    out = out + torch.einsum("btnhd,bthde->btnhe", q * (start - total).exp(), torch.stack(before, 1))
    return _ungrouped(out, piece["q"].shape[1]), state
