"""Batches of a folder's samples, and their latents and captions behind a cache."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.errors import UsageError
from genkit.media.files import write_media
from genkit.training.data.cache import Cache
from genkit.training.data.folder.batches import Batches
from genkit.training.data.folder.buckets import Bucket
from genkit.training.data.folder.encoded import Encoded
from genkit.training.data.folder.items import Cut, CutRule, Item, cut_all, read_folder


def cuts_of(*counts: int) -> tuple[Cut, ...]:
    return tuple(
        Cut(Item(Path(f"{kind}-{index}.png"), ""), Bucket(1, 64, 64 + 16 * kind), (0,))
        for kind, count in enumerate(counts)
        for index in range(count)
    )


def test_every_sample_comes_once_an_epoch_in_batches_of_one_bucket():
    cuts = cuts_of(7, 5)
    batches = Batches(cuts, size=3, seed=1)
    assert batches.per_epoch == 5
    for epoch in range(3):
        rows = [batches.at(number) for number in range(5 * epoch, 5 * epoch + 5)]
        assert Counter(cut for row in rows for cut in row) == Counter(cuts)
        assert all(len({cut.bucket for cut in row}) == 1 for row in rows)
        assert sorted(map(len, rows)) == [1, 2, 3, 3, 3]
    first, second = ([batches.at(5 * epoch + i) for i in range(5)] for epoch in (0, 1))
    assert first != second
    # The number says it all: another object, asked in another order, gives the same.
    again = Batches(cuts, size=3, seed=1)
    assert [again.at(number) for number in (9, 0, 4)] == [second[4], first[0], first[4]]
    assert [Batches(cuts, size=3, seed=2).at(i) for i in range(5)] != first


def test_repeated_samples_come_as_often_as_they_are_there():
    cuts = cuts_of(3)
    seen = Counter()
    batches = Batches((*cuts, cuts[0], cuts[0]), size=2)
    for number in range(batches.per_epoch):
        seen.update(batches.at(number))
    assert seen == {cuts[0]: 3, cuts[1]: 1, cuts[2]: 1}


def test_processes_share_batches_evenly():
    cuts = cuts_of(7, 4)
    batches = Batches(cuts, size=2, processes=2)
    seen = Counter()
    for number in range(batches.per_epoch):
        parts = [batches.at(number, rank) for rank in range(2)]
        assert len(parts[0]) == len(parts[1]) >= 1
        assert len({cut.bucket for part in parts for cut in part}) == 1
        seen.update(cut for part in parts for cut in part)
    assert set(seen) == set(cuts) and sum(seen.values()) == 12  # seven are filled up to eight


def test_no_samples_and_no_size_are_refused():
    with pytest.raises(UsageError, match="no sample to train on"):
        Batches((), size=2)
    with pytest.raises(UsageError, match="train_batch_size: got 0"):
        Batches(cuts_of(1), size=0)


@pytest.fixture
def data(tmp_path):
    levels = np.linspace(20, 230, 9).astype(np.uint8)[:, None, None, None]
    write_media(tmp_path / "data" / "a.mp4", np.broadcast_to(levels, (9, 64, 64, 3)).copy(), 8, settings={})
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "data" / "b.png")
    return tmp_path / "data"


def test_latents_are_encoded_once_and_again_when_anything_changed(tiny_wan, data, tmp_path, monkeypatch):
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    cuts = cut_all(read_folder(data, caption="x"), CutRule(64 * 64, 16, 5, 4, Fraction(8)))
    calls = []
    whole = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda pixels: calls.append(pixels.shape) or whole(pixels))
    encoded = Encoded(pipeline, Cache(tmp_path / "cache"), slots=16)
    clip, picture = (encoded.latents(cut) for cut in cuts)
    assert clip.shape == (4, 2, 8, 8) and picture.shape == (4, 1, 8, 8) and clip.dtype == torch.float16
    wanted = encoded.codec.encode(
        pipeline.vae, torch.from_numpy(cuts[1].read()).movedim(-1, 0)[None].float() / 127.5 - 1
    )
    assert torch.allclose(picture.float(), wanted[0], atol=2e-3)
    count = len(calls)
    fresh = Encoded(pipeline, Cache(tmp_path / "cache"), slots=16)
    assert torch.equal(fresh.latents(cuts[0]), clip) and len(calls) == count
    Image.fromarray(np.full((64, 64, 3), 91, np.uint8)).save(data / "b.png")
    changed = Encoded(pipeline, Cache(tmp_path / "cache"), slots=16)
    assert not torch.equal(changed.latents(cuts[1]), picture) and len(calls) == count + 1
    with torch.no_grad():
        next(pipeline.vae.parameters()).mul_(1.1)
    other = Encoded(pipeline, Cache(tmp_path / "cache"), slots=16)
    assert not torch.equal(other.latents(cuts[0]), clip) and len(calls) == count + 2


def test_captions_are_read_once_and_again_when_anything_changed(tiny_wan, tmp_path, monkeypatch):
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    calls = []
    whole = pipeline.encode_prompt
    monkeypatch.setattr(pipeline, "encode_prompt", lambda *given, **more: calls.append(given) or whole(*given, **more))
    cache = Cache(tmp_path)
    states = Encoded(pipeline, cache, slots=16).states("a red circle")
    assert states.shape == (16, 32)
    wanted = whole(["a red circle"], do_classifier_free_guidance=False, max_sequence_length=16)[0][0]
    assert torch.allclose(states, wanted, atol=1e-5)
    assert torch.equal(Encoded(pipeline, cache, slots=16).states("a red circle"), states) and len(calls) == 1
    Encoded(pipeline, cache, slots=16).states("a blue circle")
    assert Encoded(pipeline, cache, slots=8).states("a red circle").shape == (8, 32) and len(calls) == 3
    pipeline.tokenizer.padding_side = "left"
    Encoded(pipeline, cache, slots=16).states("a red circle")
    assert len(calls) == 4


def test_a_clip_is_no_sample_for_a_model_of_pictures(tiny_sd, data, tmp_path):
    pipeline = genkit.load(str(tiny_sd), "float32", "cpu")
    clip, picture = cut_all(read_folder(data, caption="x"), CutRule(64 * 64, 16, 5, 4, Fraction(8)))
    encoded = Encoded(pipeline, Cache(tmp_path / "cache"), slots=77)
    assert encoded.latents(picture).ndim == 3 and encoded.states("a").ndim == 2
    with pytest.raises(UsageError, match=r"a\.mp4: a clip of 5 frames for a model of pictures"):
        encoded.latents(clip)


def test_a_family_without_a_codec_is_refused(tmp_path):
    class NoPipeline:
        pass

    with pytest.raises(UsageError, match="NoPipeline: training data cannot be encoded"):
        Encoded(NoPipeline(), Cache(tmp_path), slots=8)
