"""Decoding chunk by chunk gives the pixels of decoding the whole."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan

from genkit.errors import UnsupportedError, UsageError
from genkit.families.wan import CODEC
from genkit.streaming import ChunkDecoder

KINDS = {
    "2.1": {"dim_mult": [1, 2, 2], "temperal_downsample": [False, True]},
    "2.2": {
        "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "is_residual": True, "patch_size": 2,
        "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8, "decoder_base_dim": 4,
    },
}  # fmt: skip


@pytest.fixture(params=KINDS)
def vae(request):
    torch.manual_seed(3)
    made = AutoencoderKLWan(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5],
        **KINDS[request.param],
    )  # fmt: skip
    return made.eval()


@pytest.mark.parametrize("split", [(1,) * 6, (3, 3), (1, 2, 3), (5, 1), (6,)])
def test_chunks_are_the_whole(vae, split):
    latents = torch.randn(2, 4, 6, 4, 6)
    decoder = ChunkDecoder(vae, CODEC)
    whole = CODEC.decode(vae, latents)
    found = torch.cat([decoder.decode(part) for part in latents.split(split, 2)], 2)
    assert torch.equal(found, whole)


def test_streams_share_an_autoencoder(vae):
    one, other = torch.randn(2, 1, 4, 4, 4, 4)
    decoders = [ChunkDecoder(vae, CODEC) for _ in range(2)]
    found = [[], []]
    for frame in range(4):
        for mine, latents, decoder in zip(found, (one, other), decoders, strict=True):
            mine.append(decoder.decode(latents[:, :, frame : frame + 1]))
            CODEC.decode(vae, torch.randn(1, 4, 2, 4, 4))  # another use of the autoencoder in between
    for mine, latents in zip(found, (one, other), strict=True):
        assert torch.equal(torch.cat(mine, 2), CODEC.decode(vae, latents))


def test_reset_begins_anew_and_memory_stays(vae):
    decoder, latents = ChunkDecoder(vae, CODEC), torch.randn(1, 4, 2, 4, 4)
    first = decoder.decode(latents)
    decoder.decode(latents)
    sizes = set()
    for _ in range(5):
        decoder.decode(latents)
        sizes.add(decoder.bytes)
    assert len(sizes) == 1
    assert not torch.equal(decoder.decode(latents)[:, :, : first.shape[2]], first)
    decoder.reset()
    assert torch.equal(decoder.decode(latents), first)


def test_a_failed_chunk_can_be_decoded_again(vae, monkeypatch):
    decoder, latents = ChunkDecoder(vae, CODEC), torch.randn(1, 4, 5, 4, 4)
    decoder.decode(latents[:, :, :2])
    forward, calls = vae.decoder.forward, []

    def torn(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(vae.decoder, "forward", torn)
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(latents[:, :, 2:])
    monkeypatch.undo()
    again = decoder.decode(latents[:, :, 2:])
    assert torch.equal(again, CODEC.decode(vae, latents)[:, :, -again.shape[2] :])


def test_what_cannot_be_decoded(vae):
    with pytest.raises(UnsupportedError, match="AutoencoderKL is no autoencoder whose decoder can go on"):
        ChunkDecoder(AutoencoderKL(block_out_channels=(32,)), CODEC)
    decoder = ChunkDecoder(vae, CODEC)
    for wrong in (torch.randn(1, 4, 4, 4), torch.randn(1, 4, 0, 4, 4)):
        with pytest.raises(UsageError, match="latents must be"):
            decoder.decode(wrong)
    vae.enable_tiling()
    with pytest.raises(UnsupportedError, match="tiles"):
        ChunkDecoder(vae, CODEC)
