"""The public entry of linear attention: argument checks and choice of backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit.errors import UsageError, explain
from genkit.kernels import discovery
from genkit.kernels.linear_state import impl
from genkit.kernels.linear_state.problem import Features
from genkit.kernels.linear_state.state import LinearState

if TYPE_CHECKING:
    from genkit.kernels.block_sparse import BlockPlan

MODES = ("all", "frame", "chunk", "token")
NORMS = ("sum", "none", "channel_softmax")
_BACKENDS = discovery.Backends(impl, "linear_state")


def backends() -> tuple[str, ...]:
    """Names of the backends, in the order ``auto`` tries them. Both are plain torch and run on every device."""
    return _BACKENDS.names()


def why_not(backend: str, q: Tensor) -> str | None:
    """None when ``backend`` can run such inputs, otherwise the reason why not."""
    _BACKENDS[backend]  # one of the names
    return None if q.is_floating_point() else f"dtype {q.dtype} is not a floating-point type"


def linear_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_den: Tensor | None = None,
    k_den: Tensor | None = None,
    key_weight: Tensor | None = None,
    value_weight: Tensor | None = None,
    mode: str = "all",
    group: int | None = None,
    decay: Tensor | None = None,
    norm: str = "sum",
    exclude: BlockPlan | None = None,
    state: LinearState | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, LinearState | None]:
    """Linear attention ``o_i = q_i KV_i / (q_den_i Z_i + eps)``, KV_i and Z_i summed over the tokens that i may see.

    Feature maps, rotary embedding, gates and projections belong to the method: q and k come already featured.

    Args:
        q, k: (B, N, H, D), features of the numerator. v: (B, N, H, Dv). In mode ``"all"`` there may be more or fewer
            queries than keys.
        q_den, k_den: features of the denominator, (B, N, H, D); default q and k (pass the unrotated ones with RoPE).
        key_weight: (B, N, H), weight of each key in numerator and denominator (RALA's weights, validity of padding).
        value_weight: (B, N, H), weight in the numerator only (Flowformer's competition).
        mode: who sees whom. ``"all"``: everyone; ``"frame"`` or ``"chunk"``: tokens of this and earlier groups of
            ``group`` tokens; ``"token"``: tokens up to the own one.
        group: tokens per frame or chunk, required in those modes; the last one may be short.
        decay: log decay (<= 0), applied to the past per frame (modes frame, chunk) or per token (mode token): (H,), or
            (B, T, H) with T groups or tokens. Differentiable.
        norm: ``"sum"`` divides by the denominator; ``"none"`` does not; ``"channel_softmax"`` (LightNet) takes k as
            logits and softmaxes them over the visible keys, channel by channel.
        exclude: a plan whose visited blocks are left out of each query block's sum (the sparse branch has them; SLA's
            unselected form). Mode ``"all"`` only. A query that excludes everything gets 0.
        state: what was seen before, joins every sum (and decays with it).
        eps: added to the denominator.
        backend: ``"auto"`` or one of :func:`backends`.

    Returns:
        ``out`` (B, N, H, Dv) in the dtype of v, and the new state over all tokens (None with ``exclude``). Both are
        differentiable in every tensor argument.

    Cost: 4 * D * Dv operations per token and head, five times as many in the backward pass, which computes every step
        again: kept are the inputs and a D x Dv state per some thousand tokens. ``exclude`` makes a state per block and
        head, some heads at a time, and adds 2 * D * Dv operations per pair of blocks. First derivatives only.

    Raises:
        UsageError: shapes that do not fit, options that exclude one another.
    """
    if backend != "auto":
        reason = why_not(backend, q)
        if reason:
            raise UsageError(f"linear_state: {reason}")
    _check_options(mode, group, decay, norm, exclude, state, q_den, k_den)
    _check_shapes(q, k, v, q_den, k_den, key_weight, value_weight, decay, group, mode, state, exclude)
    softmax = norm == "channel_softmax"
    features = Features(
        q,
        k,
        v,
        None if norm != "sum" else q if q_den is None else q_den,
        None if softmax else k if k_den is None else k_den,
        key_weight,
        value_weight,
        decay,
        mode,
        group,
        softmax,
        eps,
    )
    module = _BACKENDS["chunked" if backend == "auto" else backend]
    if exclude is not None:
        return module.excluding(features, exclude).to(v.dtype), None
    start = state if state is not None else _empty(features)
    out, end = module.attention(features, start)
    return out.to(v.dtype), end


def _empty(x: Features) -> LinearState:
    b, _, h, d = x.k.shape
    z = x.k.new_full((b, h, d), -torch.inf if x.softmax else 0.0, dtype=x.wide)
    return LinearState(x.k.new_zeros(b, h, d, x.v.shape[-1], dtype=x.wide), z, 0, x.softmax)


def _check_options(mode, group, decay, norm, exclude, state, q_den, k_den) -> None:
    if mode not in MODES:
        raise UsageError(explain("mode", mode, MODES))
    if norm not in NORMS:
        raise UsageError(explain("norm", norm, NORMS))
    if (mode in ("frame", "chunk")) != (group is not None):
        raise UsageError(
            f"group= (tokens per frame or chunk) goes with mode 'frame' or 'chunk', got mode={mode!r}, {group=}"
        )
    if group is not None and group < 1:
        raise UsageError(f"group must be at least 1 token, got {group}")
    if decay is not None and (mode == "all" or norm == "channel_softmax"):
        raise UsageError(
            f"decay needs an order of time and sums: got mode={mode!r}, norm={norm!r}; allowed: modes frame, "
            "chunk, token with norm 'sum' or 'none'"
        )
    if exclude is not None and (mode != "all" or state is not None or norm == "channel_softmax"):
        raise UsageError("exclude= works in mode 'all', with norm 'sum' or 'none' and without a state")
    if norm == "channel_softmax" and (q_den is not None or k_den is not None):
        raise UsageError("norm='channel_softmax' is normalised by itself; leave out q_den and k_den")
    if state is not None and state.channel_softmax != (norm == "channel_softmax"):
        raise UsageError(f"the state was made with channel softmax: {state.channel_softmax}, but norm={norm!r}")


def _check_shapes(q, k, v, q_den, k_den, key_weight, value_weight, decay, group, mode, state, exclude) -> None:
    fits = q.dim() == k.dim() == v.dim() == 4 and v.shape[:3] == k.shape[:3]
    if not fits or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise UsageError(
            f"linear_state needs q (B, Nq, H, D), k (B, N, H, D) and v (B, N, H, Dv), got {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}"
        )
    if q.shape[1] != k.shape[1] and mode != "all":
        raise UsageError(
            f"mode={mode!r} needs as many queries as keys, got {q.shape[1]} and {k.shape[1]}: use mode='all', or read "
            "a state with LinearState.read"
        )
    if not q.shape[1] or not k.shape[1]:
        raise UsageError(f"linear_state needs queries and keys, got {q.shape[1]} and {k.shape[1]}")
    if not q.device == k.device == v.device:
        raise UsageError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
    b, n, h, d = k.shape
    for name, x, shape in (
        ("q_den", q_den, (b, q.shape[1], h, None)),
        ("k_den", k_den, (b, n, h, None)),
        ("key_weight", key_weight, (b, n, h)),
        ("value_weight", value_weight, (b, n, h)),
    ):
        if x is not None and (
            x.dim() != len(shape) or any(w not in (None, s) for s, w in zip(x.shape, shape, strict=True))
        ):
            raise UsageError(f"{name} must be {shape}, got {tuple(x.shape)}")
    widths = [(y if x is None else x).shape[-1] for x, y in ((q_den, q), (k_den, k))]
    if widths[0] != widths[1]:
        raise UsageError(f"q_den and k_den must have as many features, got {widths[0]} and {widths[1]}")
    steps = n if mode == "token" else -(-n // group) if group else 0
    if decay is not None and tuple(decay.shape) not in ((h,), (b, steps, h)):
        raise UsageError(f"decay must be ({h},) or ({b}, {steps}, {h}), got {tuple(decay.shape)}")
    if state is not None and tuple(state.kv.shape) != (b, h, d, v.shape[-1]):
        raise UsageError(f"state.kv must be {(b, h, d, v.shape[-1])}, got {tuple(state.kv.shape)}")
    if exclude is not None and (exclude.n_q, exclude.n_k) != (q.shape[1], n):
        raise UsageError(
            f"exclude is a plan for {exclude.n_q} queries and {exclude.n_k} keys, got {q.shape[1]} and {n}"
        )
    if exclude is not None and (h % exclude.heads or b % exclude.batch):
        raise UsageError(
            f"exclude is a plan for {exclude.batch} rows and {exclude.heads} heads, got {b} rows and {h} heads"
        )
