"""Omni-full attention: one softmax over all tokens of several streams (Klear), in its plain form.

Every stream (video, its caption, the sound's caption, sound) has projections of its own; queries, keys and values are
joined along the tokens, attended in one softmax, and taken apart again. Which streams are there is a task's business: a
masked stream neither reads nor is read. No published model has weights for it, so nothing is patched with it: it is the
form that a joint model of one's own is built on, and what faster ones are tested against.

Source: Klear: Unified Multi-Task Audio-Video Joint Generation, arXiv 2601.04151.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from genkit.attention.frame_lists import turned
from genkit.errors import UsageError, explain

STREAMS = ("video", "video_text", "audio_text", "audio")
#: Task -> streams that are there.
ACTIVE: dict[str, tuple[str, ...]] = {
    "t2av": STREAMS,
    "i2av": STREAMS,
    "t2v": ("video", "video_text"),
    "i2v": ("video", "video_text"),
    "t2a": ("audio_text", "audio"),
}


def modality_mask(tasks: str | Sequence[str], streams: Sequence[str] = STREAMS) -> torch.Tensor:
    """Who reads whom: bool (S, S) of one task or (B, S, S) of several, rows read columns, in the order of ``streams``.

    Both the queries and the keys of a stream that is not there are masked; hiding its keys alone would let it compute
    outputs, zeroing its states would leave it a share of every softmax.

    Raises:
        UsageError: an unknown task or stream.
    """
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    rows = []
    for name in names:
        if name not in ACTIVE:
            raise UsageError(explain("task", name, list(ACTIVE)))
        here = torch.tensor([stream in ACTIVE[name] for stream in _known(streams)])
        rows.append(here[:, None] & here)
    return rows[0] if isinstance(tasks, str) else torch.stack(rows)


def _known(streams: Sequence[str]) -> Sequence[str]:
    unknown = [stream for stream in streams if stream not in STREAMS]
    if unknown:
        raise UsageError(explain("stream", unknown[0], list(STREAMS)))
    return streams


def omni_full_attention(
    queries: Mapping[str, torch.Tensor],
    keys: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    visible: torch.Tensor | None = None,
    scale: float | None = None,
) -> dict[str, torch.Tensor]:
    """One attention over the tokens of all streams.

    Args:
        queries, keys, values: stream -> (B, N, H, D), the same streams in the same order; norms and positions are in.
        visible: bool (S, S) or (B, S, S) over the streams, see :func:`modality_mask`; None = all see all. A stream that
            sees nothing gets zeros.
        scale: of the scores; None = ``1 / sqrt(D)``.

    Returns:
        Stream -> (B, N, H, D). Statistics in float32 at least. Memory: all pairs.

    Raises:
        UsageError: streams or a mask that do not belong together.
    """
    names = list(queries)
    if list(keys) != names or list(values) != names:
        raise UsageError(explain("streams of keys and values", [list(keys), list(values)], f"{names}, the queries'"))
    lengths = [queries[name].shape[1] for name in names]
    if [keys[name].shape[1] for name in names] != lengths:
        raise UsageError("a stream has as many keys as queries in omni-full attention")
    q, k, v = (torch.cat([part[name] for name in names], 1) for part in (queries, keys, values))
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bnhd,bmhd->bhnm", q.to(wide), k.to(wide)) * factor
    if visible is not None:
        if visible.shape[-2:] != (len(names),) * 2 or visible.ndim not in (2, 3):
            raise UsageError(explain("visible", tuple(visible.shape), f"(S, S) or (B, S, S) with S = {len(names)}"))
        stream = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(lengths)).to(q.device)
        pairs = visible.to(q.device)[..., stream, :][..., stream]
        pairs = pairs[None, None] if visible.ndim == 2 else pairs[:, None]
        seen = pairs.any(-1, keepdim=True)
        weights = logits.masked_fill(~pairs & seen, -torch.inf).softmax(-1) * seen
    else:
        weights = logits.softmax(-1)
    out = torch.einsum("bhnm,bmhd->bnhd", weights, v.to(wide)).to(q.dtype)
    return dict(zip(names, out.split(lengths, 1), strict=True))


def temporal_ids(
    frames: int,
    tokens: int,
    video_rate: float,
    audio_rate: float,
    mode: Literal["aligned", "offset"] = "aligned",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Temporal positions of latent frames and of sound tokens, float64.

    Args:
        frames: latent frames of the video. tokens: of the sound.
        video_rate, audio_rate: latent frames and sound tokens per second.
        mode: ``"aligned"`` = equal positions mean equal times; ``"offset"`` = the sound begins behind the last frame,
            as one sentence of the paper has it (another says that positions are shared). With ``"offset"`` the distance
            of a sound to its frame depends on the length of the clip.
    """
    video = torch.arange(frames, dtype=torch.float64)
    audio = torch.arange(tokens, dtype=torch.float64)
    if mode == "aligned":
        return video, audio * video_rate / audio_rate
    if mode == "offset":
        return video, audio + frames
    raise UsageError(explain("mode", mode, ("aligned", "offset")))


def turned_by_time(x: torch.Tensor, ids: torch.Tensor, width: int, theta: float = 10_000.0) -> torch.Tensor:
    """x (B, N, H, D) with its first ``width`` channels turned by temporal positions (N,), the others as they are.

    Neighbouring channels are a pair; pair p turns by ``ids * theta ** (-2 p / width)``.
    """
    if width % 2 or not 0 < width <= x.shape[-1]:
        raise UsageError(explain("width", width, f"an even number up to {x.shape[-1]}"))
    rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = (ids.to(torch.float64)[:, None] * rates).to(x.device)
    cos, sin = (
        part.to(torch.promote_types(x.dtype, torch.float32))[None, :, None] for part in (angles.cos(), angles.sin())
    )
    pairs = turned(x[..., :width].to(cos.dtype), cos, sin)
    return torch.cat([pairs.to(x.dtype), x[..., width:]], -1)
