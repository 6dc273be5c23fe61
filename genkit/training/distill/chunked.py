"""What a student of a stream is: its window, checked without weights, and one video that it answers chunk by chunk.

The cache, its positions and the attention over it are those of :class:`genkit.streaming.Stream`, so what is trained is
what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.patching import patch, unrotated
from genkit.pipelines.tasks.streaming.settings import typed_arguments
from genkit.reading import user_path
from genkit.streaming import RollingCache, StreamAttention, TemporalState, Window
from genkit.streaming.cache import placed
from genkit.streaming.plan import CACHE, plan_stream
from genkit.streaming.state import Memory, check_state
from genkit.training.distill.settings import STREAM_ARGUMENTS
from genkit.training.lora.files import STATE

#: ``--stream-args state`` of a state that begins at zero.
NEW = "new"
#: (noisy latents (B, C, T, h, w), levels (B,) or one) -> the denoiser's answer.
Answer = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Chunked:
    """A stream that is learned.

    Args:
        window: which frames a chunk sees.
        frames: latent frames of a clip as the teacher makes it.
        every: frames behind a latent one.
        keep: share of the key blocks that are read.
        renoise: whether steps are joined by fresh noise.
        state: what the stream remembers of frames that left: "new" for weights of zero, a file to begin with, None for
            nothing.
    """

    window: Window
    frames: int
    every: int
    keep: float = 1.0
    renoise: bool = True
    state: str | None = None

    @classmethod
    def of(cls, settings: Any, model: Any, asked: int | None) -> Chunked:
        """The stream of ``--stream-args``, for a clip of ``asked`` frames or, None, the longest that was trained.

        Raises:
            UnsupportedError: a pipeline that is not streamed over a cache.
            UsageError: a window that does not fit, or a clip that is not made of whole chunks.
        """
        given = typed_arguments(settings.stream_args, STREAM_ARGUMENTS)
        own = {name: given.pop(name) for name in ("keep", "renoise", "state") if name in given}
        if own.get("state", NEW) != NEW:
            check_state(user_path(own["state"], "--stream-args state"))
        window = plan_stream(model.class_name, model.config, model.sidecar, context=CACHE, **given).window
        StreamAttention(keep=own.get("keep", 1.0))
        every = int(model.config("vae").get("scale_factor_temporal") or 4)
        if asked is None:
            return cls(window, window.trained // window.chunk * window.chunk, every, **own)
        latent, rest = divmod(asked - 1, every)
        latent += 1
        if rest == 0 and latent % window.chunk:
            low = latent // window.chunk * window.chunk
            near = " or ".join(str(1 + every * (each - 1)) for each in (low, low + window.chunk) if each)
            raise UsageError(
                explain("--num-frames", asked, f"{near}: whole chunks of {counted(window.chunk, 'latent frame')} "
                        f"({counted(asked, 'frame is', 'frames are')} {counted(latent, 'latent one')}), "
                        "or another chunk in --stream-args")
            )  # fmt: skip
        return cls(window, latent, every, **own)

    @property
    def pixel_frames(self) -> int:
        """Frames of a clip."""
        return 1 + self.every * (self.frames - 1)

    @property
    def chunks(self) -> int:
        """Chunks of a clip."""
        return self.frames // self.window.chunk

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings of :class:`genkit.streaming.Stream`, for the file."""
        window = self.window
        return {
            "context": CACHE, "chunk": window.chunk, "sink": window.sink, "recent": window.recent,
            "trained": window.trained, "keep": self.keep, "renoise": self.renoise,
            **({} if self.state is None else {"state": STATE}),
        }  # fmt: skip


class Video:
    """One video in the making, a row of a batch each.

    Args:
        cache: of its earlier frames.
        attention: in the denoiser.
        tables: positions in time -> rotary tables.
        layers: attention layers that the cache is behind.
    """

    def __init__(self, cache: RollingCache, attention: StreamAttention, tables: Callable[..., Any], layers: int):
        self.cache, self.call, self._tables, self._layers = cache, attention.call, tables, layers

    def begin(self, tokens: int) -> None:
        """The next chunk, whose frames have so many tokens each."""
        cache = self.cache
        rotary, leaving = placed(cache.window, cache.made, self._tables, cache.memory is not None)
        cache.begin(rotary, tokens, leaving)

    def ask(self, answer: Answer, noisy: torch.Tensor, level: Any) -> torch.Tensor:
        """The answer for the chunk, in sight of the cache; a gradient is taken where one is wanted."""
        served = self.call.served
        found = answer(noisy, level)
        if self.call.served != served + self._layers:
            raise UnsupportedError(
                f"{self.call.served - served} of {counted(self._layers, 'attention layer')} reached the "
                "stream's cache; a model "
                "whose layers go other ways cannot learn to stream"
            )
        return found

    @torch.no_grad()
    def keep(self, answer: Answer, clean: torch.Tensor) -> None:
        """The chunk is done: its clean latents fill the cache, without a gradient."""
        self.call.write = True
        try:
            self.ask(answer, clean, 0.0)
        finally:
            self.call.write = False
        self.cache.commit()


class Rollout:
    """Videos of a denoiser over a cache.

    Args:
        network: the denoiser; it is patched only while a video is made.
        chunked: the stream.
    """

    def __init__(self, network: Any, chunked: Chunked):
        self.network, self.chunked = network, chunked
        self.state = None
        if chunked.state is not None:
            self.state = TemporalState.of(network, None if chunked.state == NEW else chunked.state)
        self.attention = StreamAttention(keep=chunked.keep, state=self.state)
        patch_size = tuple(network.config.patch_size)
        self._patch = patch_size[1] * patch_size[2]

    def tokens(self, like: torch.Tensor) -> int:
        """Of a latent frame of (B, C, T, h, w)."""
        return like.shape[-2] * like.shape[-1] // self._patch

    @contextmanager
    def video(self, like: torch.Tensor) -> Iterator[Video]:
        """A video of latents like (B, C, T, h, w), from its first chunk on."""
        cache = RollingCache(self.chunked.window, memory=None if self.state is None else Memory())
        call = self.attention.call
        with unrotated(self.network) as positions, patch(self.network, self.attention, roles="self") as handle:
            call.cache, call.write, call.served = cache, False, 0
            try:
                yield Video(cache, self.attention, lambda frames: positions.tables(frames, like), len(handle.sites))
            finally:
                call.cache = None
