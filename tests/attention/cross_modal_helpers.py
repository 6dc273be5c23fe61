"""Clocks of videos and their sound, and cross-modal context attention installed at one site."""

from __future__ import annotations

import torch

from genkit.attention.cache import PatchCache
from genkit.attention.site import Place, Site
from genkit.layout import Segment, TokenLayout

WIDE = {"dtype": torch.float64}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def video_layout(spans, height=1, width=1, extra=()):
    """Frames with (start, end), and appended tokens with their own."""
    grid = (len(spans), height, width)
    tokens = [span for span in spans for _ in range(height * width)] + list(extra)
    segments = (Segment("grid", len(tokens) - len(extra)), Segment("keyframe", len(extra)))
    return TokenLayout(grid, segments if extra else segments[:1], intervals=tuple(tokens))


def audio_layout(spans):
    return TokenLayout((0, 0, 0), (Segment("audio", len(spans)),), intervals=tuple(spans))


def ltx(frames=16, audio=126, fps=24, height=1, width=1):
    """The clocks of LTX-2: a short first frame, a short first audio token."""
    video = [(0, 1 / fps)] + [((8 * i - 7) / fps, (8 * i + 1) / fps) for i in range(1, frames)]
    sound = [(0, 0.01)] + [(0.04 * j - 0.03, 0.04 * j + 0.01) for j in range(1, audio)]
    return video_layout(video, height, width), audio_layout(sound)


def uniform(frames, audio, height=1, width=1):
    video = [(i / frames, (i + 1) / frames) for i in range(frames)]
    return video_layout(video, height, width), audio_layout([(j / audio, (j + 1) / audio) for j in range(audio)])


def visible(rule):
    rows, columns = torch.arange(rule.n_q), torch.arange(rule.n_k)
    return rule.tile(rows[None], columns[None])[0]


def ranges(rule):
    """Windows as half-open ranges; fails where a row is not one range."""
    found = []
    for row in visible(rule):
        at = row.nonzero().flatten()
        assert len(at) == at[-1] - at[0] + 1
        found.append((int(at[0]), int(at[-1]) + 1))
    return found


def site(role, video, audio, heads=2):
    pair = (video, audio) if role == "audio_to_video" else (audio, video)
    return Site("x", 0, 1, role, heads, *pair)


class Module(torch.nn.Module):
    def __init__(self, source=6, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.to_k, self.to_v = (torch.nn.Linear(source, width, **WIDE) for _ in range(2))
        self.norm_k = torch.nn.RMSNorm(width, **WIDE)

    def forward(self, hidden_states, encoder_hidden_states):
        return self.to_k(encoder_hidden_states).sum() + self.to_v(encoder_hidden_states).square().sum()


def installed(method, where):
    cache = PatchCache()
    module = Module()
    hooks = list(method.install(Place(where.name, where.role, 0, 1, where.heads, module), cache))
    return cache, module, hooks
