"""Video without end, chunk by chunk, in constant memory and time: see :class:`Stream` and :class:`HistoryStream`."""

from __future__ import annotations

from genkit.streaming.attention import StreamAttention, best_blocks
from genkit.streaming.cache import RollingCache, rotate
from genkit.streaming.chunks import Chunk, ChunkStream
from genkit.streaming.decode import ChunkDecoder
from genkit.streaming.history import HistoryStream
from genkit.streaming.state import TemporalState
from genkit.streaming.stream import Stream
from genkit.streaming.window import Window

__all__ = [
    "Chunk",
    "ChunkDecoder",
    "ChunkStream",
    "HistoryStream",
    "RollingCache",
    "Stream",
    "StreamAttention",
    "TemporalState",
    "Window",
    "best_blocks",
    "rotate",
]
