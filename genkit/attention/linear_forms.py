"""Forms of linear attention by name: feature maps, weights of keys, order of time, what is done to the output.

A form is a function of (q, k, v) as they come to the attention call, after rotary embedding. Published forms that
rotate the numerator alone take features before that: out of reach here, where features are of rotated queries and keys,
as SLA takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.attention.site import Place, Site
from genkit.attention.weights import like
from genkit.errors import UnsupportedError
from genkit.kernels.linear_state import LinearState, linear_state


@dataclass(frozen=True)
class Form:
    """What a form of linear attention is.

    Args:
        words: what it does, in a few words. source: paper.
        eps: added to the denominator.
        norm: as the operator takes it.
        unselected: whether it can leave out the blocks of a plan. causal: whether it can go frame by frame.
    """

    words: str
    source: str
    eps: float = 1e-6
    norm: str = "sum"
    unselected: bool = False
    causal: bool = False

    @property
    def normalised(self) -> bool:
        """Whether a trained RMS norm follows instead of a denominator over queries."""
        return self.norm != "sum"


FORMS = {
    "softmax": Form("softmax over the channels of queries and of keys", "SLA", 1e-5, unselected=True, causal=True),
    "elu": Form("elu + 1", "Transformers are RNNs", unselected=True, causal=True),
    "relu": Form("relu", "SANA", unselected=True, causal=True),
    "rala": Form("elu + 1, keys weighted by the mean query, local convolution of values", "RALA", unselected=True),
    "lightnet": Form("keys by softmax over the tokens, channel by channel; RMS norm", "LightNet",
                     norm="channel_softmax", causal=True),
    "lightning": Form("silu, fading from frame to frame; RMS norm", "Lightning Attention-2, TransNormerLLM",
                      norm="none", causal=True),
    "flow": Form("sigmoid; keys compete, queries allocate", "Flowformer", norm="none"),
    "state": Form("products as they are over a denominator of relu", "Hybrid Forcing", causal=True),
}  # fmt: skip


class LinearWeights(nn.Module):
    """Own weights of linear attention at one layer; at their start they change nothing.

    ``norm`` (H, D), of the RMS norm; ``rate`` (H,), log of how fast a head forgets per frame (``lightning``); ``taps``
    (H*D, 5, 5), a depth-wise convolution of the values within frames (``rala``). As a branch: ``weight`` (D, D) or
    (H, D, D) and ``bias`` (D,) or (H, D), the projection of its output.
    """

    def __init__(self, place: Place, form: str, projection: str | None = None):
        super().__init__()
        source = place.projections.q
        if source is None:
            raise UnsupportedError(
                f"layer {place.name}: linear attention with weights of its own reads its sizes from the projection "
                f"{place.projections.names[0]}, which {type(place.module).__name__} lacks"
            )
        kind, heads = like(source), place.heads
        width = source.out_features // heads
        if FORMS[form].normalised and form != "flow":
            self.norm = nn.Parameter(torch.ones(heads, width, **kind))
        if form == "lightning":
            slopes = 0.1 * 2.0 ** (-8 * torch.arange(heads, dtype=torch.float64) / heads)
            self.rate = nn.Parameter(slopes.log().to(**kind))
        if form == "rala":
            self.taps = nn.Parameter(torch.zeros(heads * width, 5, 5, **kind))
        if projection is not None:
            shape = (width,) if projection == "shared" else (heads, width)
            self.weight = nn.Parameter(torch.zeros(*shape, width, **kind))
            self.bias = nn.Parameter(torch.zeros(*shape, **kind))

    def fading(self) -> Tensor | None:
        """(H,) log decay per frame, or None."""
        return -self.rate.exp() if hasattr(self, "rate") else None

    def finish(self, out: Tensor, v: Tensor, site: Site) -> Tensor:
        """The output (B, N, H, D) of the sums, normalised and with the convolution of v added."""
        if hasattr(self, "norm"):
            scale = out.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
            out = out * scale * self.norm.to(out.device, out.dtype)
        if hasattr(self, "taps"):
            start, stop = site.layout.grid_span
            t, h, w = site.layout.grid
            taps = self.taps.to(out.device, out.dtype)[:, None]
            x = v[:, start:stop].to(out.dtype).flatten(2).transpose(1, 2).unflatten(2, (t, h, w))
            y = F.conv2d(x.transpose(1, 2).flatten(0, 1), taps, padding=2, groups=len(taps))
            y = y.unflatten(0, (len(out), t)).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, v.shape[2:])
            out = out + F.pad(y, (0, 0, 0, 0, start, out.shape[1] - stop))
        return out

    def project(self, out: Tensor) -> Tensor:
        """``out W + c`` per head, (B, N, H, D)."""
        weight, bias = (x.to(out.device, out.dtype) for x in (self.weight, self.bias))
        rule = "bnhd,de->bnhe" if weight.dim() == 2 else "bnhd,hde->bnhe"
        return torch.einsum(rule, out, weight) + bias


class Inputs:
    """Queries, keys and values of a call as one form takes them, in the precision of the sums.

    Args:
        form: name. q, k, v: (B, N, H, D) and (B, N, Hk, D). key_mask: bool (B, N), True = attend, or None.
    """

    def __init__(self, form: str, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None):
        self.name, self.form, heads = form, FORMS[form], q.shape[2]
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (x.to(wide) for x in (q, k, v))
        if k.shape[2] != heads:
            k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
        self.q, self.k, self.v = q, k, v
        self.q_den: Any = None
        self.k_den: Any = None
        self.weight: Any = None
        if key_mask is not None:
            self.weight = key_mask[..., None].to(wide).expand(*k.shape[:3])
        self._map()

    def _map(self) -> None:
        q, k = self.q, self.k
        if self.name == "softmax":
            self.q, self.k = q.softmax(-1), k.softmax(-1)
        elif self.name in ("elu", "rala"):
            self.q, self.k = F.elu(q) + 1, F.elu(k) + 1
            if self.name == "rala":
                alpha = rala_weights(self.q, self.k, self.weight)
                self.weight = alpha if self.weight is None else alpha * self.weight
        elif self.name == "relu":
            self.q, self.k = q.relu(), k.relu()
        elif self.name == "lightnet":
            self.q = F.silu(q)
        elif self.name == "lightning":
            self.q, self.k = F.silu(q), F.silu(k)
        elif self.name == "state":
            self.q_den, self.k_den = q.relu(), k.relu()

    def cut(self, span: slice, keys: slice | None = None) -> dict[str, Any]:
        """Arguments of the operator for some tokens, queries and keys."""
        keys = span if keys is None else keys
        found = {name: getattr(self, name)[:, keys] for name in ("k", "v")}
        if self.weight is not None:
            found["key_weight"] = self.weight[:, keys]
        return found | {"q": self.q[:, span], "norm": self.form.norm, "eps": self.form.eps}


def rala_weights(q: Tensor, k: Tensor, visible: Tensor | None = None) -> Tensor:
    """RALA's weights of keys (B, N, H): N times the softmax over keys of ``mean(q) . k / sqrt(D)``; their mean is 1.

    Args:
        q, k: (B, N, H, D), features. visible: (B, N, H), 0 where a key is hidden.
    """
    scores = torch.einsum("bhd,bnhd->bnh", q.mean(1), k) * q.shape[-1] ** -0.5
    if visible is None:
        return k.shape[1] * scores.softmax(1)
    return visible.sum(1, keepdim=True) * scores.masked_fill(visible == 0, -torch.inf).softmax(1)


def over_all(x: Inputs, site: Site, own: LinearWeights | None, causal: bool = False) -> Tensor:
    """Linear attention of a whole sequence (B, N, H, D); with ``causal`` the grid's frames see themselves and earlier
    ones. Tokens outside the grid see everything and are seen by everything."""
    if x.name == "lightning":
        out = _fading(x, site, own, causal)
    elif causal:
        out = _causal(x, site)
    elif x.name == "flow":
        out = flow(x)
    elif x.name == "state":
        out = _over_relu(x, lambda rest: linear_state(**rest)[0], slice(None))
    else:
        out, _ = linear_state(**x.cut(slice(None)))
    return out if own is None else own.finish(out, x.v, site)


def over_unselected(x: Inputs, plan: Any) -> Tensor:
    """Linear attention over the key blocks that a plan does not visit, (B, N, H, D)."""
    return linear_state(**x.cut(slice(None)), exclude=plan)[0]


def over_past(x: Inputs, group: int, lag: int) -> Tensor:
    """Linear attention of every frame of ``group`` tokens over those that lie ``lag`` frames or more before it; 0 where
    there is none. (B, N, H, D)."""
    return _lagged(x, slice(0, x.q.shape[1]), group, lag, None)


def _lagged(x: Inputs, grid: slice, group: int, lag: int, decay: Tensor | None) -> Tensor:
    moved = lag * group
    if moved >= grid.stop - grid.start:
        return torch.zeros_like(x.v[:, grid])
    queries, keys = slice(grid.start + moved, grid.stop), slice(grid.start, grid.stop - moved)
    more: dict[str, Any] = {"mode": "frame", "group": group, "decay": decay}
    if x.name == "state":
        out = _over_relu(x, lambda rest: linear_state(**rest, **more)[0], queries, keys)
    else:
        out = linear_state(**x.cut(queries, keys), **more)[0]
    if decay is not None:
        out = out * (lag * decay).exp()[:, None]
    return F.pad(out, (0, 0, 0, 0, moved, 0))


def _over_relu(x: Inputs, run: Any, span: slice, keys: slice | None = None) -> Tensor:
    """Hybrid Forcing's quotient. Its weights may be negative, so numerator and denominator know nothing of each other,
    and the denominator is kept from 0: below a thousandth of its mean it counts as that."""
    keys = span if keys is None else keys
    rest = x.cut(span, keys) | {"norm": "none"}
    top = run(rest)
    rest |= {"q": x.q_den[:, span], "k": x.k_den[:, keys], "v": torch.ones_like(rest["v"][..., :1])}
    below = run(rest)
    least = 1e-3 * below.detach().mean(1, keepdim=True)
    return top / torch.maximum(below, least).clamp(min=x.form.eps)


def _causal(x: Inputs, site: Site) -> Tensor:
    """Frame by frame; what is outside the grid belongs to every frame."""
    start, stop = site.layout.grid_span
    group = site.layout.frame_tokens
    if x.name == "state":
        raise UnsupportedError("form 'state' goes frame by frame as keys='past' of sparse_linear")
    end: Any
    out, end = linear_state(**x.cut(slice(start, stop)), mode="frame", group=group, state=_outside(x, site))
    edges = (x.q[:, :start], x.q[:, stop:])
    before, after = (end.read(q, norm=x.form.norm if x.form.norm == "none" else "sum", eps=x.form.eps) for q in edges)
    return torch.cat([before, out, after], 1)


def _outside(x: Inputs, site: Site) -> LinearState | None:
    """The state of the tokens outside the grid."""
    start, stop = site.layout.grid_span
    state = None
    for span in (slice(0, start), slice(stop, site.layout.length)):
        if span.stop > span.start:
            state = linear_state(**x.cut(span), state=state)[1]
    return state


def _fading(x: Inputs, site: Site, own: LinearWeights | None, causal: bool) -> Tensor:
    """Frames that fade with their distance, in one direction or both; inside a frame and outside the grid nothing
    fades."""
    start, stop = site.layout.grid_span
    grid, group = slice(start, stop), site.layout.frame_tokens
    rate = None if own is None else own.fading()
    decay = (slopes(x.q.shape[2]) if rate is None else rate).to(x.q.device, x.q.dtype)
    out, _ = linear_state(**x.cut(grid), mode="frame", group=group, decay=decay)
    if not causal and site.layout.grid[0] > 1:
        turned = object.__new__(Inputs)
        turned.__dict__ = {
            name: each[:, grid].flip(1) if isinstance(each, Tensor) else each for name, each in x.__dict__.items()
        }
        back = _lagged(turned, slice(0, stop - start), group, 1, decay)
        out = out + back.flip(1)
    state = _outside(x, site)
    if state is None:
        return out
    out = out + state.read(x.q[:, grid], norm="none")
    inside: Any = linear_state(**x.cut(grid))[1]
    whole = inside.merge(state)
    before, after = (whole.read(q, norm="none") for q in (x.q[:, :start], x.q[:, stop:]))
    return torch.cat([before, out, after], 1)


def slopes(heads: int) -> Tensor:
    """(H,) log decay per frame where nothing is trained: from -0.1 to nearly 0, ALiBi's ratios."""
    return -0.1 * 2.0 ** (-8 * torch.arange(heads) / heads)


def flow(x: Inputs) -> Tensor:
    """Flowformer: what flows in and out is conserved, so that keys compete and queries allocate. (B, N, H, D)."""
    e, q, k = 1e-6, x.q.sigmoid(), x.k.sigmoid()
    if x.weight is not None:
        k = k * x.weight[..., None]
    count = k.shape[1] if x.weight is None else x.weight.sum(1, keepdim=True)
    incoming = 1 / ((q + e) * (k.sum(1, keepdim=True) + e)).sum(-1)
    outgoing = 1 / ((k + e) * (q.sum(1, keepdim=True) + e)).sum(-1)
    if x.weight is not None:
        outgoing = outgoing * x.weight
    kept_in = ((q + e) * ((k * outgoing[..., None]).sum(1, keepdim=True) + e)).sum(-1)
    kept_out = ((k + e) * ((q * incoming[..., None]).sum(1, keepdim=True) + e)).sum(-1).clamp(-1, 1)
    if x.weight is not None:
        kept_out = kept_out.masked_fill(x.weight == 0, -torch.inf)
    competition = count * kept_out.softmax(1)
    out, _ = linear_state(q, k, x.v, norm="none", value_weight=competition)
    return out * (incoming * (kept_in * (q.shape[1] / count)).sigmoid())[..., None]
