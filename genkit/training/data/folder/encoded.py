"""Latents and text states of samples, each made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from genkit.errors import UsageError
from genkit.families.lookup import facts_of
from genkit.training.data.cache import Cache, fingerprint
from genkit.training.data.folder.items import Cut, Item
from genkit.training.data.pixels import as_tensor

#: Of entries; counted up when what is stored under a key would be other tensors.
_VERSION = 1
_DTYPE = torch.float16


@dataclass
class Encoded:
    """A pipeline's autoencoder and text encoders behind a cache.

    Args:
        pipeline: of a family whose record has a codec and text states.
        cache: where entries lie.
        slots: text tokens per caption.

    Raises:
        UsageError: a pipeline whose family has no such record.
    """

    pipeline: Any
    cache: Cache
    slots: int
    _digests: dict[Item, str] = field(default_factory=dict)

    def __post_init__(self):
        name = type(self.pipeline).__name__
        facts = facts_of(name)
        if facts is None or facts.codec is None or facts.text is None or facts.text.states is None:
            raise UsageError(
                f"{name}: training data cannot be encoded for it, its family's record has no codec or text"
            )
        self.codec, self.text = facts.codec, facts.text
        self._vae = fingerprint(self.pipeline.vae)
        parts = sorted(self.pipeline.components.items())
        encoders = [part for key, part in parts if key.startswith("text_encoder") and isinstance(part, nn.Module)]
        tokenizers = [words_of(part) for key, part in parts if key.startswith("tokenizer") and part is not None]
        self._text = " ".join([name, fingerprint(*encoders), *tokenizers])

    def latents_key(self, cut: Cut) -> dict[str, Any]:
        """All that the latents of a sample depend on."""
        if cut.item not in self._digests:
            self._digests[cut.item] = cut.item.digest()
        bucket = cut.bucket
        return {
            "kind": "latents",
            "version": _VERSION,
            "content": self._digests[cut.item],
            "frames": list(cut.frames),
            "bucket": [bucket.frames, bucket.height, bucket.width],
            "vae": self._vae,
            "dtype": str(_DTYPE),
        }

    def latents(self, cut: Cut) -> torch.Tensor:
        """Normalised latents (C, T, h, w), or (C, h, w) of a model for pictures; float16."""
        return self.cache.get(self.latents_key(cut), lambda: {"latents": self._encode(cut)})["latents"]

    def _encode(self, cut: Cut) -> torch.Tensor:
        frames = cut.read()
        if "T" not in self.codec.axes:
            if len(frames) > 1:
                raise UsageError(f"{cut.item.path.name}: a clip of {len(frames)} frames for a model of pictures")
            frames = frames[0]
        return self.codec.encode(self.pipeline.vae, as_tensor(frames[None]))[0].to(_DTYPE)

    def states_key(self, caption: str) -> dict[str, Any]:
        """All that the text states of a caption depend on."""
        return {
            "kind": "text", "version": _VERSION, "caption": caption, "slots": self.slots, "encoders": self._text,
        }  # fmt: skip

    def states(self, caption: str) -> torch.Tensor:
        """Text states (slots, width) of a caption as the pipeline makes them, in the encoders' type."""
        return self.cache.get(self.states_key(caption), lambda: {"states": self._read(caption)})["states"]

    @torch.no_grad()
    def _read(self, caption: str) -> torch.Tensor:
        return self.text.states(self.pipeline, [caption], self.slots)[0]


def words_of(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: its rules where it tells them, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # How the last texts were padded and cut is left behind in it; that is each call's own business.
    told = json.dumps(
        {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}, sort_keys=True
    )
    more = (type(tokenizer).__name__, tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_max_length)
    return hashlib.sha256(f"{more} {told}".encode()).hexdigest()
