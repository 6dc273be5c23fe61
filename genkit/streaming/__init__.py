"""Video without end, chunk by chunk, in constant memory and time: see :class:`Stream`."""

from __future__ import annotations

from genkit.streaming.attention import StreamAttention, best_blocks
from genkit.streaming.cache import RollingCache, rotate
from genkit.streaming.decode import ChunkDecoder
from genkit.streaming.stream import Chunk, Stream
from genkit.streaming.window import Window

__all__ = ["Chunk", "ChunkDecoder", "RollingCache", "Stream", "StreamAttention", "Window", "best_blocks", "rotate"]
