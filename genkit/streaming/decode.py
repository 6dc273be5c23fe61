"""Decoding a video while it is made: the causal convolutions of the autoencoder remember what came before."""

from __future__ import annotations

from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.families.codec import Codec, device_of


class ChunkDecoder:
    """Decodes latent frames as they come, with the same pixels as decoding all of them at once.

    Works on Diffusers' ``AutoencoderKLWan``, whose decoder is causal in time: it takes one latent frame after the
    other and keeps the last features of every convolution (its ``feat_cache``). Here the stream keeps them, so several
    streams can share an autoencoder, and its own ``decode`` can be called in between.

    Args:
        vae: the autoencoder.
        codec: how its latents are normalised.

    Raises:
        UnsupportedError: another class of autoencoder; tiles are switched on, which are decoded one by one over time.

    Memory: twice the features of two frames at every convolution, whatever the length. The first latent frame gives one
    frame of pixels, every later one as many as the autoencoder compresses into one (4).
    """

    def __init__(self, vae: Any, codec: Codec):
        missing = [name for name in ("decoder", "post_quant_conv", "_cached_conv_counts") if not hasattr(vae, name)]
        if missing:
            raise UnsupportedError(
                f"{type(vae).__name__} is no autoencoder whose decoder can go on where it stopped; AutoencoderKLWan is"
            )
        if getattr(vae, "use_tiling", False):
            raise UnsupportedError("a stream decodes whole frames; leave out the tiles of the autoencoder (vae_tiling)")
        self.vae, self.codec = vae, codec
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next latent frame is the first of a video."""
        self.frames = 0
        count = self.vae._cached_conv_counts["decoder"]
        # Two sets of buffers, filled in turns: features that lived where they were made would lie scattered among the
        # workspaces of convolutions, and the heap would grow with every chunk.
        self._features: tuple[list[Any], list[Any]] = ([None] * count, [None] * count)
        self._now = 0

    @property
    def state(self) -> tuple[int, int]:
        """Where the decoder stands; good to go back to by one chunk."""
        return self.frames, self._now

    @state.setter
    def state(self, state: tuple[int, int]) -> None:
        self.frames, self._now = state

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels of the next latent frames.

        Args:
            latents: normalised, (B, C, T, h, w).

        Returns:
            (B, 3, F, H, W) in -1..1, in the autoencoder's dtype.
        """
        vae = self.vae
        if latents.dim() != 5 or not latents.shape[2]:
            raise UsageError(f"latents must be (B, C, T, h, w) with T of at least 1, got {tuple(latents.shape)}")
        hook = getattr(vae, "_hf_hook", None)  # brings offloaded weights, as the autoencoder's own decode does
        if hook is not None and hasattr(hook, "pre_forward"):
            hook.pre_forward(vae)
        z = self.codec.denormalise(vae, latents.to(device_of(vae)).float()).to(next(vae.parameters()).dtype)
        features, made, pixels = list(self._features[self._now]), self.frames, []
        z = vae.post_quant_conv(z)
        for frame in z.split(1, 2):
            first = {"first_chunk": True} if made == 0 else {}
            pixels.append(vae.decoder(frame, feat_cache=features, feat_idx=[0], **first))
            made += 1
        _copy(features, self._features[1 - self._now])
        self._now, self.frames = 1 - self._now, made
        found = torch.cat(pixels, 2) if len(pixels) > 1 else pixels[0]
        if vae.config.patch_size is not None:
            found = _unpatchified(found, vae.config.patch_size)
        return found.clamp(-1.0, 1.0)

    @property
    def bytes(self) -> int:
        """Memory of the features that are kept."""
        held = (*self._features[0], *self._features[1])
        return sum(x.numel() * x.element_size() for x in held if isinstance(x, torch.Tensor))


def _copy(features: list[Any], into: list[Any]) -> None:
    """Features in buffers that are there already, where they fit."""
    for number, new in enumerate(features):
        old = into[number]
        if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor) and old.shape == new.shape:
            old.copy_(new)
        else:
            into[number] = new.clone() if isinstance(new, torch.Tensor) else new


def _unpatchified(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels (B, C, F, H p, W p) of patches (B, C p p, F, H, W); within a patch columns come before rows."""
    batch, channels, frames, height, width = x.shape
    parts = x.view(batch, channels // patch**2, patch, patch, frames, height, width)  # B C column row F H W
    return parts.permute(0, 1, 4, 5, 3, 6, 2).reshape(batch, -1, frames, height * patch, width * patch)
