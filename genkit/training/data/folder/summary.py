"""What a run's folders come to, for a look before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genkit.errors import counted
from genkit.reading.files import place
from genkit.training.data.cache import Cache
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.encoded import Encoded, media_key, text_key
from genkit.training.data.folder.told import listed

#: Parts of keys that tell a model's weights.
_MODELS = ("vae", "encoders")


@dataclass(frozen=True)
class CaptionLengths:
    """Tokens of the captions.

    Args:
        longest: of all.
        slots: that the model reads.
        cut: captions that are longer and lose their end.
    """

    longest: int
    slots: int
    cut: tuple[str, ...]


@dataclass(frozen=True)
class CacheState:
    """What a cache holds for a run.

    Args:
        ready: entries that are there.
        missing: entries that must be made.
        others: entries of other files, settings or models; they are never met by mistake and may be deleted.
        exact: whether the weights were looked at. If not, an entry made by another model of the same configuration
            counts as ready.
    """

    ready: int
    missing: int
    others: int
    exact: bool

    def __str__(self) -> str:
        sure = "" if self.exact or not self.ready else ", if they are this model's"
        return (
            f"{counted(self.ready, 'entry is', 'entries are')} there{sure}; {self.missing} must be made; "
            f"{self.others} are of other runs"
        )


@dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Args:
        folders: (path, pictures, clips) of each.
        buckets: samples per epoch by size (frames x height x width).
        batches: per epoch, over all processes.
        held_out: samples that are never trained on.
        told: what a user should know, one line each.
        unused: files that are neither media nor captions.
        captions: None where no tokenizer was at hand.
        cache: None where none was looked at.
    """

    folders: tuple[tuple[str, int, int], ...]
    buckets: dict[str, int]
    batches: int
    held_out: int
    told: tuple[str, ...]
    unused: tuple[str, ...]
    captions: CaptionLengths | None = None
    cache: CacheState | None = None

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        return sum(self.buckets.values())

    def lines(self) -> list[str]:
        """The summary for people."""
        found = [
            f"{place(path)}: {counted(pictures, 'picture')}, {counted(clips, 'clip')}"
            for path, pictures, clips in self.folders
        ]
        shelves = ", ".join(f"{bucket} ({count})" for bucket, count in self.buckets.items())
        found.append(
            f"{counted(self.samples, 'sample')} in {counted(self.batches, 'batch', 'batches')} an epoch: {shelves}"
        )
        if self.held_out:
            found.append(f"{counted(self.held_out, 'sample')} held out")
        if self.captions is not None:
            found.append(f"captions of up to {self.captions.longest} of {counted(self.captions.slots, 'token')}")
        if self.cache is not None:
            found.append(f"cache: {self.cache}")
        return found + self.notes()

    def notes(self) -> list[str]:
        """What a user should know beside the numbers, one line each."""
        found = []
        if self.captions is not None and self.captions.cut:
            short = [repr(place(caption[:60])) for caption in self.captions.cut]
            found.append(
                f"{counted(len(short), 'caption is', 'captions are')} longer than the {self.captions.slots} tokens "
                f"that are read; the end is lost: {listed(short)}"
            )
        if self.unused:
            found.append(
                f"{counted(len(self.unused), 'file is', 'files are')} not used: "
                f"{listed([place(name) for name in self.unused])}"
            )
        return found + list(self.told)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {**asdict(self), "samples": self.samples}


def summarise(
    data: FolderData,
    batch_size: int,
    processes: int = 1,
    tokenizers: Sequence[Any] = (),
    slots: int = 0,
    cache: str | Path | None = None,
    encoded: Encoded | None = None,
) -> Summary:
    """What the folders of a run come to; no weights are needed.

    Args:
        data: the folders as read.
        batch_size: samples per batch and process.
        processes: that train together.
        tokenizers: the pipeline's, to count tokens; of several the one that reads most counts.
        slots: text tokens per caption.
        cache: folder of entries to look into.
        encoded: tells the cache's state with the weights looked at.
    """
    batches = data.batches(batch_size, 0, processes)
    folders = tuple(
        (str(folder.path), sum(not item.video for item in folder.items), sum(item.video for item in folder.items))
        for folder in data.folders
    )
    unused = tuple(str(folder.path / name) for folder in data.folders for name in folder.unused)
    return Summary(
        folders,
        batches.shelves,
        batches.per_epoch,
        len(data.held_out),
        (*_told(data), *data.told),
        unused,
        caption_lengths(tokenizers, data.captions, slots) if tokenizers else None,
        None if cache is None else cache_state(data, Path(cache), slots, encoded),
    )


def _told(data: FolderData) -> list[str]:
    """What is to be told about files, the files of each line together."""
    files: dict[str, dict[str, None]] = {}
    for cut in data.every:
        for line in cut.told:
            files.setdefault(line, {})[place(cut.item.path.name)] = None
    return [f"{counted(len(names), 'file')}: {line}: {listed(list(names))}" for line, names in files.items()]


def caption_lengths(tokenizers: Sequence[Any], captions: Sequence[str], slots: int) -> CaptionLengths:
    """Tokens of captions; a template around them is not counted."""
    reader = max(tokenizers, key=lambda tokenizer: min(tokenizer.model_max_length, 1 << 20))
    counts = [len(reader(caption, truncation=False, verbose=False)["input_ids"]) for caption in captions]
    cut = tuple(caption for caption, count in zip(captions, counts, strict=True) if count > slots)
    return CaptionLengths(max(counts, default=0), slots, cut)


def cache_state(data: FolderData, folder: Path, slots: int, encoded: Encoded | None = None) -> CacheState:
    """What a cache holds for a run.

    Args:
        data: the folders as read.
        folder: of the cache; it need not be there.
        slots: text tokens per caption.
        encoded: with the model's weights; without, all that keys say beside them is compared.
    """
    if encoded is not None:
        wanted = [*map(encoded.media_key, data.every), *map(encoded.text_key, data.captions)]
    else:
        wanted = [media_key(cut, data.contents, None) for cut in data.every]
        wanted += [text_key(caption, slots, None) for caption in data.captions]
    there = [_blind(key, encoded is not None) for _, key in Cache(folder).keys()]  # noqa: SIM118 - no mapping
    needed = {_blind(key, encoded is not None) for key in wanted}
    ready = needed & set(there)
    return CacheState(
        len(ready), len(needed) - len(ready), sum(each not in ready for each in there), encoded is not None
    )


def _blind(key: dict[str, Any], exact: bool) -> str:
    """A key to compare, without what only the weights tell."""
    return json.dumps({name: value for name, value in key.items() if exact or name not in _MODELS}, sort_keys=True)
