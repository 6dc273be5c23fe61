"""Latents and text states of samples as the family's record makes them, each made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError
from genkit.families.training.base import AUDIO, SPREAD, Tensors, Training
from genkit.training.data.cache import Cache, fingerprint
from genkit.training.data.folder.contents import Contents
from genkit.training.data.folder.cuts import Cut
from genkit.training.data.folder.read import mask_of, read_sample, sound_mask
from genkit.training.data.pixels import quick_convolutions

#: Of entries; counted up when what is stored under a key would be other tensors or told otherwise.
_VERSION = 3
#: Bytes of entries that are kept in memory, the ones read last; small data sets are read from the disk once.
_MEMORY = 1 << 29
#: Beginning of the name under which the weights of a stream's loss are stored.
MASK = "loss_mask_"
#: Of latents and their deviations. It changes a latent of toy-video's clips by 2e-4 (root mean square), a thirtieth of
#: the posterior's own deviation and an eighth of what bfloat16 does. What is no stream's is kept in the type it has.
_DTYPE = torch.float16


class Encoded:
    """A pipeline's autoencoders and text encoders behind a cache.

    Args:
        pipeline: with its weights; see :meth:`release`.
        training: the record of its family.
        cache: where entries lie.
        slots: text tokens per caption.
        contents: digests of the files.
    """

    def __init__(self, pipeline: Any, training: Training, cache: Cache, slots: int, contents: Contents):
        self.training, self.cache, self.slots, self.contents = training, cache, slots, contents
        self._pipeline = pipeline
        parts = {key: part for key, part in sorted(pipeline.components.items()) if part is not None}
        modules = {key: part for key, part in parts.items() if isinstance(part, nn.Module)}
        name = type(pipeline).__name__
        seeing = [part for key, part in modules.items() if "vae" in key or key.startswith("image_encoder")]
        reading = [part for key, part in modules.items() if key.startswith(("text_encoder", "connectors"))]
        tokenizers = [words_of(part) for key, part in parts.items() if key.startswith("tokenizer")]
        self._seeing = seeing
        self._near: OrderedDict[Path, Tensors] = OrderedDict()
        self._held = 0
        self._seen_by = " ".join([name, training.variant, fingerprint(*seeing), _switches(seeing)])
        self._read_by = " ".join([name, training.variant, fingerprint(*reading), *tokenizers])

    def release(self) -> None:
        """Let go of the pipeline: what is not on disk by now is an error from here on."""
        self._pipeline, self._seeing = None, []

    @property
    def told(self) -> str:
        """What made the tensors: the encoders' fingerprints and the text's length."""
        return f"{self._seen_by} {self._read_by} {self.slots}"

    def media_key(self, cut: Cut) -> dict[str, Any]:
        """All that the tensors of a sample's media depend on."""
        return media_key(cut, self.contents, self._seen_by)

    def text_key(self, caption: str) -> dict[str, Any]:
        """All that the tensors of a caption depend on."""
        return text_key(caption, self.slots, self._read_by)

    def media(self, cut: Cut) -> Tensors:
        """What the family's record makes of a sample, latents and their deviations in float16."""
        return self._get(self.media_key(cut), lambda: self._encode(cut))

    def text(self, caption: str) -> Tensors:
        """What it makes of a caption, in the encoders' type."""
        return self._get(self.text_key(caption), lambda: self._read(caption))

    def store_media(self, cut: Cut) -> Tensors:
        """The same, from the disk or written to it."""
        return self.cache.get(self.media_key(cut), lambda: self._encode(cut))

    def store_text(self, caption: str) -> Tensors:
        """The same of a caption."""
        return self.cache.get(self.text_key(caption), lambda: self._read(caption))

    def _get(self, key: dict[str, Any], make: Callable[[], Tensors]) -> Tensors:
        """An entry, from memory where it was read lately."""
        path = self.cache.path_of(key)
        if path in self._near:
            self._near.move_to_end(path)
            return dict(self._near[path])
        found = self.cache.get(key, make)
        self._near[path], self._held = found, self._held + _bytes(found)
        while self._held > _MEMORY:
            self._held -= _bytes(self._near.popitem(last=False)[1])
        return dict(found)

    @torch.no_grad()
    def _encode(self, cut: Cut) -> Tensors:
        pipeline = self._open(cut.name)
        media, heard = read_sample(cut)
        streams = self.training.streams
        with quick_convolutions(self._seeing):
            made = self.training.encode(pipeline, media, None)
        found = {name: self._stored(name, value, cut.name) for name, value in made.items()}
        if cut.item.mask is not None:
            found[MASK + streams[0]] = mask_of(cut, made[streams[0]]).to(_DTYPE)
        if AUDIO in made and heard < 1:
            found[MASK + AUDIO] = sound_mask(made[AUDIO], heard).to(_DTYPE)
        for path in cut.item.files:
            self.contents.check(path)
        return found

    @torch.no_grad()
    def _read(self, caption: str) -> Tensors:
        # One at a time: batches of other captions would change the last bits.
        return dict(self.training.text(self._open(repr(caption[:40])), [caption], self.slots)[0])

    def _stored(self, name: str, value: torch.Tensor, where: str) -> torch.Tensor:
        if name.removesuffix(SPREAD) not in self.training.streams:
            return value
        small = value.to(_DTYPE)
        if not small.isfinite().all():
            raise ArtifactError(
                f"{where}: the autoencoder makes numbers of it that are infinite or none; load it in float32"
            )
        return small

    def _open(self, what: str) -> Any:
        if self._pipeline is None:
            raise ArtifactError(f"{what}: its entry in the cache {self.cache.folder} is gone; start again to make it")
        return self._pipeline


def media_key(cut: Cut, contents: Contents, seen_by: str | None) -> dict[str, Any]:
    """All that the tensors of a sample's media depend on; ``seen_by`` tells pipeline and autoencoders."""
    bucket = cut.bucket
    return {
        "kind": "media",
        "version": _VERSION,
        "content": contents.digest(cut.item.path),
        "frames": list(cut.frames),
        "fps": None if cut.fps is None else str(cut.fps),
        "bucket": [bucket.frames, bucket.height, bucket.width],
        "mask": None if cut.item.mask is None else contents.digest(cut.item.mask),
        "given": {role: contents.digest(path) for role, path in cut.item.given},
        "sound": [cut.sound, str(cut.start)] if cut.sound else None,
        "vae": seen_by,
        "dtype": str(_DTYPE),
    }


def text_key(caption: str, slots: int, read_by: str | None) -> dict[str, Any]:
    """All that the tensors of a caption depend on; ``read_by`` tells pipeline, text encoders and tokenizers."""
    return {"kind": "text", "version": _VERSION, "caption": caption, "slots": slots, "encoders": read_by}


def _bytes(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _switches(parts: list[nn.Module]) -> str:
    """How autoencoders were told to work: in tiles or frame by frame, which changes what they make."""
    kinds = (bool, int, float)
    told = [
        {
            name: value
            for name, value in vars(part).items()
            if name.startswith(("use_", "tile_")) and type(value) in kinds
        }
        for part in parts
    ]
    return json.dumps(told, sort_keys=True)


def words_of(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: its rules where it tells them, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Mapping[str, Any] = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # How the last texts were padded and cut is left behind in it; that is each call's own business.
    told = json.dumps(
        {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}, sort_keys=True
    )
    more = (type(tokenizer).__name__, tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_max_length)
    return hashlib.sha256(f"{more} {told}".encode()).hexdigest()
