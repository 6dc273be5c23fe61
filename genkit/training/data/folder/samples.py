"""A user's files as batches for a task: encoded once, then read from the cache."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genkit.errors import ArtifactError
from genkit.families.training.base import AUDIO, SPREAD, Tensors, Training
from genkit.media.atomic import check_writable
from genkit.reading.files import place
from genkit.training.data.batch import Batch
from genkit.training.data.cache import Cache
from genkit.training.data.folder.cuts import Cut
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.encoded import MASK, Encoded


class FolderSamples:
    """The :class:`~genkit.training.data.batch.Samples` of a user's folders.

    What is drawn (the latents from the posterior, dropped captions) depends on the seed, the batch's number and the
    place in the batch of all processes: a resumed run sees what an unbroken one does, and two processes what one with
    a batch of twice the size does.

    Args:
        data: the folders as read.
        pipeline: with autoencoders, text encoders and tokenizers; what is trained is not looked at.
        training: the record of its family.
        cache: folder for entries, made if need be. Several runs and processes may share one.
        batch_size: samples per batch and process.
        seed: of order, dropout and posterior.
        processes: that train together.
        slots: text tokens per caption; the family's when left out.

    Raises:
        UsageError: a batch without samples.
    """

    def __init__(
        self,
        data: FolderData,
        pipeline: Any,
        training: Training,
        cache: str | Path,
        *,
        batch_size: int,
        seed: int = 0,
        processes: int = 1,
        slots: int | None = None,
    ):
        self.data, self.training, self.seed = data, training, seed
        self.batches = data.batches(batch_size, seed, processes)
        self.encoded = Encoded(pipeline, training, Cache(Path(cache)), slots or training.slots, data.contents)

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch, over all processes."""
        return self.batches.per_epoch

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what the batches hold."""
        batches = self.batches
        told = (self.data.digest(), self.encoded.told, batches.size, batches.processes, self.seed)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def count(self, number: int) -> int:
        """Samples of one process in the batch of a number."""
        return len(self.batches.at(number))

    def prepare(
        self,
        rank: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
        release: bool = False,
        told: Callable[[str], None] = warnings.warn,
    ) -> int:
        """Encode what the cache does not hold yet, so that autoencoders and text encoders are needed no more.

        May be stopped at any time and called again: entries appear whole, one by one. Of several processes each makes
        its part; they must wait for each other afterwards. A damaged entry is made anew.

        Args:
            rank: number of this process.
            progress: told (done, all that this process makes, name) before each entry and at the end.
            release: let go of the pipeline afterwards.
            told: called with a line for each damaged entry.

        Returns:
            Entries made.

        Raises:
            ArtifactError: the cache cannot be written, or the disk is too small for what is missing, which is known
                as soon as the first entries are there.
        """
        cache = self.encoded.cache
        check_writable(cache.folder, "cache_dir")
        # Shared out before looking: others may be writing, and each would see something else missing.
        mine = []
        for entry in list(self._entries())[rank :: self.batches.processes]:
            damage = cache.damage(entry[1])
            if damage is not None:
                told(f"{damage.removesuffix('; delete it')}; it is made anew")
                cache.path_of(entry[1]).unlink(missing_ok=True)
            if damage is not None or not cache.holds(entry[1]):
                mine.append(entry)
        room = _Room(cache.folder, [entry[1]["kind"] for entry in mine])
        for number, (name, key, make) in enumerate(mine):
            if progress is not None:
                progress(number, len(mine), name)
            room.filled(key["kind"], make())
        if progress is not None:
            progress(len(mine), len(mine), "")
        if release:
            self.encoded.release()
        return len(mine)

    def batch(self, number: int, rank: int = 0) -> Batch:
        """The batch of a number counted over all epochs, for one process."""
        found = [(place, self.data.cuts[index]) for place, index in self.batches.places(number, rank)]
        draws = [np.random.default_rng((self.seed, number, place)) for place, _ in found]
        captions = [
            "" if rng.random() < cut.item.dropout else cut.item.caption
            for rng, (_, cut) in zip(draws, found, strict=True)
        ]
        noise: list[torch.Generator | None] = [torch.Generator().manual_seed(int(rng.integers(2**62))) for rng in draws]
        return self._batch([cut for _, cut in found], captions, noise)

    def held_out(self) -> Mapping[str, Batch]:
        """Samples that are never trained on, a batch at a time, by name of their shelf; encoded or read when they are
        asked for. Their latents are the posterior's mode, no caption is dropped."""
        return _HeldOut(self)

    def _entries(self) -> Iterator[tuple[str, dict[str, Any], Callable[[], Tensors]]]:
        """Name, key and maker of everything a run reads."""
        for cut in self.data.every:
            yield cut.name, self.encoded.media_key(cut), partial(self.encoded.store_media, cut)
        for caption in self.data.captions:
            yield "captions", self.encoded.text_key(caption), partial(self.encoded.store_text, caption)

    def _batch(self, cuts: list[Cut], captions: list[str], noise: list[torch.Generator | None]) -> Batch:
        media = [self._drawn(self.encoded.media(cut), one) for cut, one in zip(cuts, noise, strict=True)]
        masks = {stream: _masks(media, cuts, stream) for stream in self.training.streams}
        whole = _stacked(media)
        latents = {name: whole.pop(name) for name in self.training.streams if name in whole}
        text = _stacked([self.encoded.text(caption) for caption in captions])
        fps = None if cuts[0].fps is None else float(cuts[0].fps)
        found = {stream: mask for stream, mask in masks.items() if mask is not None}
        return Batch(latents, whole, text, found, fps, tuple(cut.name for cut in cuts))

    def _drawn(self, media: Tensors, noise: torch.Generator | None) -> Tensors:
        """Latents from the posterior, or its mode without a generator."""
        found = {name: value for name, value in media.items() if not name.endswith(SPREAD)}
        for name in (name for name in self.training.streams if name in found):
            found[name] = found[name].float()
            if noise is not None and name + SPREAD in media:
                found[name] += media[name + SPREAD].float() * torch.randn(found[name].shape, generator=noise)
        return found


class _Room:
    """Whether there is room on the disk for the entries that are still to be made."""

    def __init__(self, folder: Path, kinds: list[str]):
        self._folder, self._left, self._sizes = folder, Counter(kinds), dict[str, int]()

    def filled(self, kind: str, made: Tensors) -> None:
        """An entry was made. The first and the largest ones of each kind tell how much the others need at most."""
        self._left[kind] -= 1
        size = sum(value.numel() * value.element_size() for value in made.values())
        if size <= self._sizes.get(kind, 0):
            return
        self._sizes[kind] = size
        needed = sum(self._sizes.get(each, 0) * left for each, left in self._left.items())
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise ArtifactError(
                f"cache_dir: {place(self._folder)} has {free / 1e9:.1f} GB left, what is still to be made takes up to "
                f"{needed / 1e9:.1f} GB; choose another one, or make room"
            )


class _HeldOut(Mapping):
    """Batches of held-out samples, made when they are asked for."""

    def __init__(self, samples: FolderSamples):
        self._samples = samples
        self._rows: dict[str, list[Cut]] = {}
        shelves: dict[str, list[Cut]] = {}
        for cut in samples.data.held_out:
            shelves.setdefault(cut.shelf, []).append(cut)
        size = samples.batches.size
        for shelf, cuts in sorted(shelves.items()):
            for start in range(0, len(cuts), size):
                part = f", part {start // size + 1}" if len(cuts) > size else ""
                self._rows[shelf + part] = cuts[start : start + size]

    def __getitem__(self, name: str) -> Batch:
        cuts = self._rows[name]
        return self._samples._batch(cuts, [cut.item.caption for cut in cuts], [None] * len(cuts))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _masks(media: list[Tensors], cuts: list[Cut], stream: str) -> torch.Tensor | None:
    """Weights (B, 1, ...) of a stream's loss, taken out of what was stored; None where all counts in all samples."""
    found = [sample.pop(MASK + stream, None) for sample in media]
    like = next((mask for mask in found if mask is not None), None)
    if like is None:
        return None
    weights = [torch.ones_like(like) if mask is None else mask for mask in found]
    if stream != AUDIO:  # its padding never counts
        lowest = [cut.item.unmasked for cut in cuts]
        weights = [low + (1 - low) * mask.float() for low, mask in zip(lowest, weights, strict=True)]
    return torch.stack(weights).float()


def _stacked(samples: list[Tensors]) -> Tensors:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
