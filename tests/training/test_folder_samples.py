"""A user's folders as batches: encoded once, drawn by number, held-out files never trained on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.errors import ArtifactError, UsageError
from genkit.families.lookup import facts_of
from genkit.families.sizes import SizeRule
from genkit.families.training.base import Training
from genkit.media.files import write_media
from genkit.training.data.cache import Cache
from genkit.training.data.folder.cuts import CutRule
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.encoded import Encoded
from genkit.training.data.folder.rules import FolderRule, ModelRule, folder_rules
from genkit.training.data.folder.samples import FolderSamples
from genkit.training.data.folder.summary import CacheState, cache_state, summarise
from genkit.training.data.pixels import quick_convolutions
from genkit.training.data.source import DataSource
from genkit.training.lora.groups import DataSettings

FACTS = facts_of("WanPipeline")
RULE = CutRule(64 * 64, 16, 5, 4, Fraction(8))


def encode(pipeline, media, generator):
    mode, deviation = FACTS.codec.moments(pipeline.vae, media.pixels[None])
    return {"video": mode[0], "video_spread": deviation[0], "first": media.pixels[:, 0, 0, 0]}


def text(pipeline, captions, slots):
    return [{"states": states, "mask": torch.ones(slots)} for states in FACTS.text.states(pipeline, captions, slots)]


TRAINING = Training(("video",), encode, text, lambda call: {}, lambda out, call: {}, 16)


@pytest.fixture(scope="module")
def pipeline(tiny_wan):
    return genkit.load(str(tiny_wan), "float32", "cpu")


def grey(path, level: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), level, np.uint8)).save(path)
    path.with_suffix(".txt").write_text(f"level {level}")


@pytest.fixture
def folder(tmp_path):
    levels = np.linspace(20, 230, 9).astype(np.uint8)[:, None, None, None]
    write_media(tmp_path / "data" / "a.mp4", np.broadcast_to(levels, (9, 64, 64, 3)).copy(), 8)
    (tmp_path / "data" / "a.txt").write_text("a clip")
    for level in (40, 90, 140):
        grey(tmp_path / "data" / f"{level}.png", level)
    return tmp_path / "data"


def read(folder, held_out=0, **more) -> FolderData:
    return FolderData.read([FolderRule(str(folder), (RULE,), **more)], held_out)


def samples(pipeline, folder, cache, data=None, **more) -> FolderSamples:
    return FolderSamples(data or read(folder), pipeline, TRAINING, cache, **{"batch_size": 2, **more})


def same(one, two) -> bool:
    parts = [(a[name], b[name]) for a, b in zip(flat(one), flat(two), strict=True) for name in a]
    return one.names == two.names and all(torch.equal(a, b) for a, b in parts)


def flat(batch):
    return batch.latents, batch.media, batch.text


def test_batches_are_a_function_of_their_number(pipeline, folder, tmp_path):
    data = samples(pipeline, folder, tmp_path / "cache")
    assert data.per_epoch == 3
    rows = [data.batch(number) for number in range(6)]
    assert sorted(len(row.names) for row in rows[:3]) == [1, 1, 2]
    clip = next(row for row in rows if row.fps)
    assert (
        clip.fps == 8
        and clip.latents["video"].shape == (1, 4, 2, 8, 8)
        and clip.latents["video"].dtype == torch.float32
    )
    assert clip.text["states"].shape == (1, 16, 32) and clip.text["mask"].shape == (1, 16)
    assert set(clip.media) == {"first"} and clip.media["first"].shape == (1, 3)
    again = samples(pipeline, folder, tmp_path / "cache")
    assert all(same(again.batch(number), rows[number]) for number in (5, 0, 2))
    assert not all(same(a, b) for a, b in zip(rows[:3], rows[3:], strict=True))


def test_latents_are_drawn_from_the_posterior_anew_in_every_epoch(pipeline, folder, tmp_path):
    data = samples(pipeline, folder, tmp_path / "cache", batch_size=1)
    clips = [row.latents["video"] for row in map(data.batch, range(80)) if row.fps]
    assert len(clips) == 20 and not torch.equal(clips[0], clips[1])
    cut = next(cut for cut in data.data.cuts if cut.item.video)
    media = data.encoded.media(cut)
    away = (torch.cat(clips) - media["video"].float()) / media["video_spread"].float()
    assert abs(away.mean()) < 0.02 and abs(away.std() - 1) < 0.02


def test_two_processes_get_what_one_with_the_double_batch_gets(pipeline, folder, tmp_path):
    for level in (60, 70, 80):
        grey(folder / f"{level}.png", level)
    (folder / "a.mp4").unlink()
    data = read(folder, caption_dropout=0.5)
    one = samples(pipeline, folder, tmp_path / "cache", data, batch_size=4)
    two = samples(pipeline, folder, tmp_path / "cache", data, batch_size=2, processes=2)
    for number in range(4):
        whole, parts = one.batch(number), [two.batch(number, rank) for rank in range(2)]
        assert whole.names == parts[0].names + parts[1].names
        assert torch.equal(whole.latents["video"], torch.cat([part.latents["video"] for part in parts]))
        assert torch.equal(whole.text["states"], torch.cat([part.text["states"] for part in parts]))


def test_captions_are_dropped_as_often_as_asked(pipeline, folder, tmp_path):
    data = samples(pipeline, folder, tmp_path / "cache", read(folder, caption_dropout=0.25), batch_size=1)
    empty = data.encoded.text("")["states"]
    dropped = sum(torch.equal(data.batch(number).text["states"][0], empty) for number in range(400))
    assert 70 < dropped < 130


def test_preparing_makes_what_is_missing_and_then_the_pipeline_may_go(pipeline, folder, tmp_path):
    told = []
    data = samples(pipeline, folder, tmp_path / "cache", read(folder, held_out=1, caption_dropout=0.1), processes=2)
    assert data.prepare(1, lambda *line: told.append(line)) == 4  # of 4 media, 4 captions and the empty one
    assert [line[:2] for line in told] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert data.prepare(1) == 0 and data.prepare(0, release=True) == 5 and data.prepare(0) == 0
    data.batch(0), data.batch(0, 1)
    (held,) = data.held_out().values()
    assert len(held.names) == 1 and not set(held.names) & {cut.name for cut in data.data.cuts}
    next((tmp_path / "cache").glob("*/*")).unlink()
    with pytest.raises(ArtifactError, match="is gone; start again"):
        data.prepare(0)


def test_held_out_files_are_chosen_by_content_and_kept_out(pipeline, folder, tmp_path):
    for level in range(100, 120):
        grey(folder / f"{level}.png", level)
    data = read(folder, held_out=0.25)
    out = {cut.item.path.name for cut in data.held_out}
    assert 1 <= len(out) < 12 and not out & {cut.item.path.name for cut in data.cuts}
    assert len(data.cuts) + len(data.held_out) == 24
    kept = next(iter(out - {"a.mp4"}))
    (folder / kept).rename(folder / "renamed.png")
    (folder / kept).with_suffix(".txt").rename(folder / "renamed.txt")
    assert {cut.item.path.name for cut in read(folder, held_out=0.25).held_out} == out - {kept} | {"renamed.png"}
    assert len({cut.item.path for cut in read(folder, held_out=3).held_out}) == 3
    assert len(read(folder, held_out=1e-9).held_out) == 1
    for wanted in (24, -1, 2.5, True):
        with pytest.raises(UsageError, match="held_out: got"):
            read(folder, held_out=wanted)


def test_entries_are_made_once_and_again_when_anything_changed(tiny_wan, folder, tmp_path, monkeypatch):
    pipeline = genkit.load(str(tiny_wan), "float32", "cpu")
    calls = []
    whole, words = pipeline.vae.encode, pipeline.encode_prompt
    monkeypatch.setattr(pipeline.vae, "encode", lambda pixels: calls.append("vae") or whole(pixels))
    monkeypatch.setattr(pipeline, "encode_prompt", lambda *a, **b: calls.append("text") or words(*a, **b))

    def made(slots=16, training=TRAINING) -> list[str]:
        calls.clear()
        data = read(folder)
        encoded = Encoded(pipeline, training, Cache(tmp_path / "cache"), slots, data.contents)
        first = [encoded.media(cut) for cut in data.cuts] + [encoded.text(caption) for caption in data.captions]
        assert first[0]["video"].dtype == torch.float16 and first[-1]["states"].dtype == torch.float32
        return sorted(calls)

    assert made() == ["text"] * 4 + ["vae"] * 4 and made() == []
    grey(folder / "40.png", 41)
    assert made() == ["text", "vae"]  # its caption changed, too
    assert made(slots=8) == ["text"] * 4
    pipeline.vae.use_tiling = True
    assert made() == ["vae"] * 4
    pipeline.vae.use_tiling = False
    pipeline.tokenizer.padding_side = "left"
    assert made() == ["text"] * 4
    with torch.no_grad():
        next(pipeline.vae.parameters()).mul_(1.1)
    assert made() == ["vae"] * 4


def test_a_file_that_changes_meanwhile_is_told(pipeline, folder, tmp_path):
    data = samples(pipeline, folder, tmp_path / "cache")
    Image.fromarray(np.full((64, 64, 3), 250, np.uint8)).save(folder / "40.png")
    with pytest.raises(ArtifactError, match=r"40\.png was changed while it was in use"):
        data.prepare()
    assert not any(
        "40.png" in path.read_bytes().decode("latin-1") for path in (tmp_path / "cache").rglob("*.safetensors")
    )


def test_latents_that_are_no_numbers_are_told(pipeline, folder, tmp_path):
    broken = Training(
        ("video",), lambda *_: {"video": torch.tensor([float("nan")])}, text, lambda call: {}, lambda out, call: {}, 16
    )
    data = FolderSamples(read(folder), pipeline, broken, tmp_path / "cache", batch_size=1)
    with pytest.raises(ArtifactError, match=r"\.png: the autoencoder makes numbers of it that are infinite or none"):
        data.prepare()


def test_trigger_words_stand_before_or_inside_captions(folder):
    (folder / "40.txt").write_text("a photo of [trigger]")
    (folder / "90.txt").write_text("sks level")
    (folder / "140.txt").write_text("sksy level")
    found = {cut.item.path.stem: cut.item.caption for cut in read(folder, trigger_word="sks").cuts}
    assert found == {"a": "sks a clip", "40": "a photo of sks", "90": "sks level", "140": "sks sksy level"}
    with pytest.raises(UsageError, match=r"40\.png: its caption says \[trigger\]"):
        read(folder)


def test_the_digest_follows_what_is_trained_on(folder):
    told = read(folder).digest()
    (folder / "40.png").rename(folder / "39.png")
    (folder / "40.txt").rename(folder / "39.txt")
    assert read(folder).digest() == told
    (folder / "39.txt").write_text("another")
    assert read(folder).digest() != told


def test_rules_come_from_the_folder_then_the_run_then_the_model():
    model = ModelRule(SizeRule(16, 4), 128, 17, Fraction(16))
    settings = DataSettings(caption_dropout=0.2, num_frames=(9, 17), fps="8")
    sources = (
        DataSource("a"),
        DataSource("b", num_repeats=3, weight=0.5, caption_dropout=0.0, resolution=("64", "32x48"), num_frames=(5,),
                   frame_extraction="slide", frame_stride=2, caption="x", trigger_word="sks", caption_extension=".cap"),
    )  # fmt: skip
    first, second = folder_rules(sources, settings, model)
    assert [(cut.area, cut.frames, cut.fps, cut.sides) for cut in first.cuts] == [
        (128 * 128, 9, 8, None), (128 * 128, 17, 8, None),
    ]  # fmt: skip
    assert (first.caption_dropout, first.times, first.caption, first.trigger_word) == (0.2, 1, None, None)
    assert [(cut.area, cut.sides, cut.extraction, cut.stride) for cut in second.cuts] == [
        (64 * 64, None, "slide", 2), (32 * 48, (32, 48), "slide", 2),
    ]  # fmt: skip
    assert (second.caption_dropout, second.times, second.caption, second.trigger_word) == (0, 1.5, "x", "sks")
    assert second.caption_extension == ".cap"
    (square,) = folder_rules(sources[:1], DataSettings(aspect_buckets=False, resolution=("64",)), model)
    assert square.cuts[0].sides == (64, 64) and square.cuts[0].frames == 17
    (full,) = folder_rules(sources[:1], DataSettings(frame_extraction="full"), model)
    assert full.cuts[0].frames > 90_000
    for wrong, said in (
        ({"resolution": ("40x64",)}, "resolution: got 40, allowed: multiples of 16; try 32 or 48"),
        ({"resolution": ("8",)}, "resolution: got 8, allowed: at least 16"),
        ({"num_frames": (10,)}, "num_frames: got 10"),
        ({"caption_extension": "txt"}, "caption_extension: got 'txt'"),
    ):
        with pytest.raises(UsageError, match=said):
            folder_rules(sources[:1], DataSettings(**wrong), model)


def test_several_sizes_and_lengths_make_a_sample_each(folder):
    rule = FolderRule(
        str(folder), (RULE, CutRule(64 * 64, 16, 9, 4, Fraction(8)), CutRule(32 * 32, 16, 5, 4, Fraction(8)))
    )
    data = FolderData.read([rule])
    shelves = data.batches(1).shelves
    assert shelves == {
        "1x32x32": 3, "1x64x64": 3, "5x32x32 at 8 fps": 1, "5x64x64 at 8 fps": 1, "9x64x64 at 8 fps": 1,
    }  # fmt: skip


def test_damaged_entries_are_told_and_made_anew(pipeline, folder, tmp_path):
    data = samples(pipeline, folder, tmp_path / "cache")
    assert data.prepare() == 8
    wanted = [data.batch(number) for number in range(3)]
    paths = sorted((tmp_path / "cache").glob("*/*.safetensors"))
    paths[0].write_bytes(paths[0].read_bytes()[:-10])
    paths[1].write_bytes(b"")
    paths[3].write_bytes(paths[4].read_bytes())
    told = []
    assert data.prepare(told=told.append) == 3
    assert len(told) == 3 and all(line.endswith("; it is made anew") for line in told)
    assert all(same(data.batch(number), row) for number, row in enumerate(wanted))


def test_a_disk_that_is_too_small_is_told_with_the_first_entry(pipeline, folder, tmp_path, monkeypatch):
    import shutil

    data = samples(pipeline, folder, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(ArtifactError, match=r"cache_dir: .*cache has 0\.0 GB left, what is still to be made takes"):
        data.prepare()
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 1


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_encoded(pipeline, folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot write into .*cache.*; choose another cache_dir"):
        samples(pipeline, folder, tmp_path / "cache").prepare()


def test_the_summary_tells_what_a_run_comes_to(pipeline, folder, tmp_path):
    (folder / "notes.pdf").write_text("x")
    (folder / "140.png").write_bytes((folder / "90.png").read_bytes())
    (folder / "90.txt").write_text("a very long caption of the " + "red " * 30)
    data = read(folder, held_out=1, caption_dropout=0.1)
    told = summarise(data, 2, 1, [pipeline.tokenizer], 16, tmp_path / "cache")
    assert told.folders == ((str(folder), 3, 1),) and told.samples == len(data.cuts) and told.held_out >= 1
    assert told.batches == data.batches(2).per_epoch and told.captions.longest > 30 and len(told.captions.cut) == 1
    assert told.cache == CacheState(0, 8, 0, False)  # two files are one entry
    text = "\n".join(told.lines())
    for part in ("3 pictures, 1 clip", "1 caption is longer", "8 must be made", "1 file is not used", "notes.pdf",
                 "1 file is there more than once"):  # fmt: skip
        assert part in text
    assert told.to_dict()["cache"]["missing"] == 8


def test_the_state_of_a_cache_knows_stale_entries(pipeline, folder, tmp_path):
    data = read(folder)
    made = samples(pipeline, folder, tmp_path / "cache", data)
    made.prepare()
    assert cache_state(data, tmp_path / "cache", 16) == CacheState(8, 0, 0, False)
    assert cache_state(data, tmp_path / "cache", 16, made.encoded) == CacheState(8, 0, 0, True)
    assert cache_state(data, tmp_path / "cache", 8) == CacheState(4, 4, 4, False)
    grey(folder / "40.png", 41)
    changed = read(folder)
    assert cache_state(changed, tmp_path / "cache", 16) == CacheState(6, 2, 2, False)
    (tmp_path / "cache" / "aa").mkdir(exist_ok=True)
    (tmp_path / "cache" / "aa" / "x.safetensors").write_bytes(b"broken")
    assert cache_state(changed, tmp_path / "cache", 16).others == 2
    other = genkit.load(str(pipeline.config._name_or_path or pipeline._name_or_path), "float32", "cpu")
    with torch.no_grad():
        next(other.vae.parameters()).mul_(1.1)
    foreign = samples(other, folder, tmp_path / "cache", data).encoded
    assert cache_state(data, tmp_path / "cache", 16, foreign) == CacheState(4, 4, 4, True)  # captions fit


def test_convolutions_are_quick_for_the_time_of_encoding_only(pipeline):
    pixels = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        plain = pipeline.vae.encode(pixels).latent_dist.mode()
        with quick_convolutions([pipeline.vae]):
            assert any("_conv_forward" in vars(part) for part in pipeline.vae.modules())
            quick = pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(plain, quick, atol=1e-5, rtol=1e-4)
    assert not any("_conv_forward" in vars(part) for part in pipeline.vae.modules())


def test_entries_read_lately_stay_in_memory(pipeline, folder, tmp_path, monkeypatch):
    from genkit.training.data.folder import encoded as module

    data = samples(pipeline, folder, tmp_path / "cache")
    data.prepare()
    first = [data.batch(number) for number in range(3)]
    for path in (tmp_path / "cache").glob("*/*.safetensors"):
        path.write_bytes(b"")
    assert all(same(data.batch(number), row) for number, row in enumerate(first))
    monkeypatch.setattr(module, "_MEMORY", 100)
    data.encoded._near.clear()
    with pytest.raises(ArtifactError, match="no readable entry"):
        data.batch(0)
