"""What all streams are: iterators over chunks of frames whose prompt can be changed while they run."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genkit.errors import ArtifactError
from genkit.streaming.prompts import Prompts, Travel


@dataclass(frozen=True)
class Chunk:
    """Frames that were made at once.

    Args:
        index: of the chunk, from 0.
        start: number of its first frame in the stream.
        frames: uint8 (T, H, W, 3).
        prompt: that was in force.
        seconds: wall time, decoding included.
    """

    index: int
    start: int
    frames: np.ndarray
    prompt: str
    seconds: float


class ChunkStream(ABC):
    """Iterates over the chunks of a video that has no end. A chunk that fails or is interrupted changes nothing.

    Args:
        pipeline: a loaded pipeline.
        prompt: see :class:`genkit.streaming.prompts.Travel`.
        seed: of all noise.
        negative_prompt: what to keep away from.
    """

    def __init__(self, pipeline: Any, prompt: Prompts, seed: int, negative_prompt: str | None):
        self.pipeline, self.negative_prompt = pipeline, negative_prompt
        self.travel = Travel(prompt)
        self.seed = seed
        self._closed = False
        self.reset()

    def reset(self, prompt: Prompts | None = None, seed: int | None = None) -> None:
        """Forget everything that was made: the next chunk is the first of another video.

        Args:
            prompt, seed: new ones; None keeps what there is (an iterable of prompts goes on).
        """
        if prompt is not None:
            self.travel = Travel(prompt)
        self.seed = self.seed if seed is None else seed
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.index = self.made = self.frames = 0  # chunks, latent frames, frames
        self._shown: str | None = None  # the prompt of the latest chunk
        self._text: tuple[str, tuple[torch.Tensor, torch.Tensor | None]] | None = None
        self._next: str | None = None  # the prompt of a chunk that was begun
        self._forget()

    def close(self) -> None:
        """End the stream and give its memory back."""
        self.reset()
        self._closed = True

    @property
    def prompt(self) -> str | None:
        """The prompt of the latest chunk; setting it puts another in force from the next chunk on."""
        return self._shown

    @prompt.setter
    def prompt(self, text: str) -> None:
        self.travel.replace(text)
        self._next = None

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory that is kept from chunk to chunk."""

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        """The next chunk. One that fails or is interrupted leaves the stream as it was."""
        if self._closed:
            raise StopIteration
        begun = time.perf_counter()
        if self._next is None:
            self._next = self.travel.at(self.frames)
        text = self._next
        if text is None:
            raise StopIteration
        drawn_so_far, back = self.generator.get_state(), self._restorer()
        try:
            with torch.no_grad():
                latents, pixels = self._chunk(text)
            frames = as_frames(pixels)
        except BaseException:
            self.generator.set_state(drawn_so_far)
            back()
            raise
        self._keep(latents, pixels)
        self._shown, self._next = text, None
        chunk = Chunk(self.index, self.frames, frames, text, time.perf_counter() - begun)
        self.index, self.made, self.frames = self.index + 1, self.made + latents.shape[2], self.frames + len(frames)
        return chunk

    @property
    def _device(self) -> Any:
        return self.pipeline._execution_device

    def _encoded(self, text: str, guidance: float, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text states of a prompt and of the negative one, encoded once per prompt.

        Args:
            text: the prompt. guidance: above 1 the negative prompt is needed. length: in tokens at most.
        """
        if self._text is None or self._text[0] != text:
            states = self.pipeline.encode_prompt(
                prompt=text, negative_prompt=self.negative_prompt, do_classifier_free_guidance=guidance > 1,
                num_videos_per_prompt=1, max_sequence_length=length, device=self._device,
            )  # fmt: skip
            self._text = text, states
        return self._text[1]

    @abstractmethod
    def _forget(self) -> None:
        """Drop what is kept from chunk to chunk."""

    def _restorer(self) -> Callable[[], None]:
        """What puts back state that :meth:`_chunk` changes, for a chunk that fails; noise is put back anyway."""
        return lambda: None

    @abstractmethod
    def _chunk(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents (1, C, T, h, w) of the next chunk alone, and its pixels (1, 3, F, H, W) in -1..1."""

    @abstractmethod
    def _keep(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Keep what the next chunk will see."""


def as_frames(pixels: torch.Tensor) -> np.ndarray:
    """uint8 (T, H, W, 3) of pixels (1, 3, T, H, W) in -1..1.

    Raises:
        ArtifactError: NaN or infinite pixels.
    """
    values = pixels[0].float().permute(1, 2, 3, 0)
    if not bool(torch.isfinite(values).all()):
        raise ArtifactError("the model returned NaN or infinite pixels; try float32 or other weights")
    return ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
