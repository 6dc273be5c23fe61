"""What goes with a sample: masks of the loss, pictures that are told to the model, sound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.errors import UsageError
from genkit.families.lookup import facts_of
from genkit.families.sizes import SizeRule
from genkit.families.training.base import Training
from genkit.media.files import write_media
from genkit.training.data.folder.cuts import CutRule
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.read import read_sample, sound_mask
from genkit.training.data.folder.rules import FolderRule, ModelRule, folder_rules
from genkit.training.data.folder.samples import FolderSamples
from genkit.training.data.folder.summary import summarise
from genkit.training.data.source import DataSource
from genkit.training.lora.groups import DataSettings

FACTS = facts_of("WanPipeline")
RULE = CutRule(64 * 64, 16, 9, 4, Fraction(8))
HEARD = {name: CutRule(64 * 64, 16, 9, 4, Fraction(8), missing_audio=name) for name in ("refuse", "video", "silence")}


def encode(pipeline, media, generator):
    """The tiny model's latents; sound is its mean loudness in every eighth of the clip."""
    found = {"video": FACTS.codec.encode(pipeline.vae, media.pixels[None])[0]}
    if media.audio is not None:
        parts = media.audio.abs().mean(0).chunk(8)
        found["audio"] = torch.stack([part.mean() for part in parts]).view(1, 8, 1).expand(2, 8, 3).contiguous()
    return found | {role: pixels[:, :, ::8, ::8] for role, pixels in media.given.items()}


def text(pipeline, captions, slots):
    return [{"states": states} for states in FACTS.text.states(pipeline, captions, slots)]


TRAINING = Training(("video", "audio"), encode, text, lambda call: {}, lambda out, call: {}, 16)


@pytest.fixture(scope="module")
def pipeline(tiny_wan):
    return genkit.load(str(tiny_wan), "float32", "cpu")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def clip(path, frames=9, height=64, width=64, fps=8, seconds=None, level=0.5, rate=16000):
    """A clip that gets lighter; with ``seconds`` of a loud tone."""
    levels = np.linspace(20, 230, frames).astype(np.uint8)[:, None, None, None]
    pixels = np.broadcast_to(levels, (frames, height, width, 3)).copy()
    sound = {}
    if seconds is not None:
        wave = level * np.sin(np.arange(round(rate * seconds)) * 2 * np.pi * 440 / rate)
        sound = {"audio": wave.astype(np.float32), "sample_rate": rate}
    write_media(path, pixels, fps, force=True, **sound)
    return path


def read(folder, rule=RULE, **more) -> FolderData:
    return FolderData.read([FolderRule(str(folder), (rule,), **{"caption": "x", **more})])


def samples(pipeline, data, tmp_path) -> FolderSamples:
    return FolderSamples(data, pipeline, TRAINING, tmp_path / "cache", batch_size=2)


def test_masks_weigh_the_loss_where_latents_stand_for_them(pipeline, tmp_path):
    half = np.zeros((128, 128), np.uint8)
    half[:, 64:] = 255
    folder = tmp_path / "data"
    for name in ("a.png", "b.png"):
        write(folder / name, np.full((64, 64, 3), 90))
    clip(folder / "c.mp4")
    write(folder / "a.mask.png", half)
    write(folder / "masks" / "c.png", half)
    data = read(folder, masks="masks", unmasked_weight=0.25)
    assert [cut.item.path.name for cut in data.cuts] == ["a.png", "b.png", "c.mp4"] and data.folders[0].unused == ()
    assert any("1 of 3 files have no mask" in line for line in data.told)
    found = samples(pipeline, data, tmp_path)
    rows = {row.latents["video"].shape[2]: row for row in (found.batch(0), found.batch(1))}
    both, moving = rows[1].masks["video"], rows[3].masks["video"]
    assert both.shape == (2, 1, 1, 8, 8) and moving.shape == (1, 1, 3, 8, 8)
    masked = both[[name.endswith("a.png") for name in rows[1].names].index(True)]
    plain = both[[name.endswith("b.png") for name in rows[1].names].index(True)]
    assert plain.eq(1).all() and masked[..., :3].eq(0.25).all() and masked[..., 5:].eq(1).all()
    assert moving[..., :3].eq(0.25).all() and moving[..., 5:].eq(1).all()
    assert "audio" not in rows[1].masks
    write(folder / "a.mask.png", 255 - half)
    again = samples(pipeline, read(folder, masks="masks"), tmp_path)
    other = next(row for row in (again.batch(0), again.batch(1)) if row.latents["video"].shape[2] == 1)
    assert other.masks["video"][..., 5:].min() == 0  # a new mask never meets an old entry


def test_a_clip_as_a_mask_weighs_every_frame(pipeline, tmp_path):
    clip(tmp_path / "data" / "a.mp4")
    clip(tmp_path / "masks" / "a.mp4")
    data = read(tmp_path / "data", masks=str(tmp_path / "masks"))
    weights = samples(pipeline, data, tmp_path).batch(0).masks["video"]
    wanted = np.linspace(20, 230, 9).round() / 255
    assert torch.allclose(
        weights[0, 0, :, 0, 0], torch.tensor([wanted[0], wanted[1:5].mean(), wanted[5:].mean()]).float(), atol=0.02
    )
    clip(tmp_path / "masks" / "a.mp4", frames=7)
    with pytest.raises(UsageError, match=r"a\.mp4 has 7 frames and goes with a clip of 9; allowed: as many"):
        read(tmp_path / "data", masks=str(tmp_path / "masks"))


def test_masks_that_cannot_be_used_are_told(tmp_path):
    folder = tmp_path / "data"
    write(folder / "a.png", np.full((64, 64, 3), 90))
    write(folder / "a.mask.png", np.full((64, 128), 255))
    with pytest.raises(UsageError, match=r"a\.mask\.png is a mask of 128x64 pixels for 64x64; allowed: the same"):
        read(folder)
    write(folder / "a.mask.png", np.zeros((64, 64)))
    with pytest.raises(UsageError, match=r"a\.mask\.png is black in all of the sample"):
        read(folder)
    assert len(read(folder, unmasked_weight=0.5).cuts) == 1
    (folder / "a.mask.png").unlink()
    with pytest.raises(UsageError, match="masks: .*gone is no folder"):
        read(folder, masks="gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="masks: .*empty holds no file that ends in"):
        read(folder, masks=str(tmp_path / "empty"))
    for name in ("b.png", "a.png", "a.jpg"):
        write(tmp_path / "masks" / name, np.full((64, 64), 255))
    with pytest.raises(UsageError, match="has two files named a; allowed: one"):
        read(folder, masks=str(tmp_path / "masks"))
    (tmp_path / "masks" / "a.jpg").unlink()
    assert any("masks: 1 belong to no sample" in line for line in read(folder, masks=str(tmp_path / "masks")).told)


def test_pictures_to_follow_are_cut_like_their_sample(pipeline, tmp_path):
    folder, control = tmp_path / "data", tmp_path / "control"
    for number, name in enumerate(("a.png", "b.png")):
        write(folder / name, np.full((64, 64, 3), 90))
        write(control / name, np.full((128, 128, 3), 50 + 100 * number))
    clip(folder / "deep" / "c.mp4")
    clip(control / "deep" / "c.mp4")
    data = read(folder, given={"control": str(control)})
    found = samples(pipeline, data, tmp_path)
    rows = {row.latents["video"].shape[2]: row for row in (found.batch(0), found.batch(1))}
    assert rows[1].media["control"].shape == (2, 3, 1, 8, 8) and rows[3].media["control"].shape == (1, 3, 9, 8, 8)
    levels = [50 if name.endswith("a.png") else 150 for name in rows[1].names]
    assert torch.allclose(rows[1].media["control"][:, 0, 0, 0, 0], torch.tensor(levels) / 127.5 - 1, atol=1e-3)
    (control / "b.png").unlink()
    with pytest.raises(UsageError, match=r"without a picture of their name in the folder of control: b\.png"):
        read(folder, given={"control": str(control)})
    write(control / "b.png", np.full((64, 128, 3), 9))
    assert any("control b.png has another shape" in line for line in read(folder, given={"control": str(control)}).told)


def test_what_the_model_is_not_told_is_refused_and_what_it_needs_is_asked_for():
    model = ModelRule(SizeRule(16, 4), 64, 9, Fraction(8), needs=("control", "first_frame"), takes=("last_frame",))
    (rule,) = folder_rules([DataSource("a", control="c")], DataSettings(first_frame="clip", last_frame="l"), model)
    assert rule.given == {"control": "c", "last_frame": "l"}
    with pytest.raises(UsageError, match="control: the model needs it; allowed: a folder of pictures"):
        folder_rules([DataSource("a")], DataSettings(), model)
    with pytest.raises(UsageError, match="control: the model is told no such picture; leave it out"):
        folder_rules([DataSource("a")], DataSettings(control="c"), ModelRule(SizeRule(16, 4), 64))


def test_sound_is_cut_to_the_clip(tmp_path):
    clip(tmp_path / "a.mp4", frames=18, seconds=18 / 8, rate=48000)
    data = read(tmp_path, CutRule(64 * 64, 16, 9, 4, Fraction(8), "chunk", missing_audio="refuse"))
    assert [(cut.sound, float(cut.start)) for cut in data.cuts] == [("own", 0), ("own", 9 / 8)]
    for cut in data.cuts:
        media, heard = read_sample(cut)
        assert media.audio.shape == (1, 54000) and media.audio.dtype == torch.float32 and media.sample_rate == 48000
        assert heard > 0.99 and media.audio.abs().max() > 0.4 and media.fps == 8


def test_sound_that_ends_early_is_padded_and_its_padding_counts_nothing(pipeline, tmp_path):
    clip(tmp_path / "data" / "a.mp4", seconds=9 / 16)
    batch = samples(pipeline, read(tmp_path / "data", HEARD["video"]), tmp_path).batch(0)
    assert batch.latents["audio"].shape == (1, 2, 8, 3) and batch.masks["audio"].shape == (1, 1, 8, 1)
    loud, weights = batch.latents["audio"][0, 0, :, 0], batch.masks["audio"][0, 0, :, 0]
    assert loud[:4].min() > 0.2 and loud[5:].max() < 0.01
    assert weights[:4].eq(1).all() and weights[5:].eq(0).all() and "video" not in batch.masks
    assert torch.allclose(sound_mask(torch.zeros(2, 4, 3), 0.625)[0, :, 0], torch.tensor([1, 1, 0.5, 0]))


def test_clips_without_sound_are_refused_or_trained_on_as_asked(pipeline, tmp_path):
    folder = tmp_path / "data"
    clip(folder / "loud.mp4", seconds=9 / 8)
    for name in ("mute.mp4", "dumb.mp4"):
        clip(folder / name)
    write(folder / "still.png", np.full((64, 64, 3), 90))
    with pytest.raises(UsageError, match=r"2 of 4 files .*dumb\.mp4: it has no sound.*mute\.mp4: it has no sound"):
        read(folder, HEARD["refuse"])
    alone = samples(pipeline, read(folder, HEARD["video"]), tmp_path)
    assert alone.batches.shelves == {"1x64x64": 1, "9x64x64 at 8 fps": 2, "9x64x64 at 8 fps with sound": 1}
    rows = [alone.batch(number) for number in range(3)]
    assert sorted(("audio" in row.latents, len(row.names)) for row in rows) == [(False, 1), (False, 2), (True, 1)]
    silent = samples(pipeline, read(folder, HEARD["silence"]), tmp_path)
    assert silent.batches.shelves == {"1x64x64": 1, "9x64x64 at 8 fps with sound": 3}
    row = next(row for row in map(silent.batch, range(6)) if any("mute" in name for name in row.names))
    place = ["mute" in name for name in row.names].index(True)
    assert row.latents["audio"][place].eq(0).all() and "audio" not in row.masks


def test_a_piece_after_the_end_of_the_sound_has_none(tmp_path):
    clip(tmp_path / "a.mp4", frames=18, seconds=0.5)
    pieces = [CutRule(64 * 64, 16, 9, 4, Fraction(8), "chunk", missing_audio=name) for name in ("video", "refuse")]
    assert [cut.sound for cut in read(tmp_path, pieces[0]).cuts] == ["own", None]
    with pytest.raises(UsageError, match=r"no sound from 1\.125 s on; allowed: missing_audio"):
        read(tmp_path, pieces[1])


def test_what_is_done_with_clips_without_sound_is_told_with_their_names(tmp_path):
    clip(tmp_path / "loud.mp4", frames=9, seconds=1.2)
    clip(tmp_path / "mute.mp4", frames=9, seconds=None)
    done = {"video": "the video alone is trained with it", "silence": "silence is trained in its place"}
    for name, words in done.items():
        lines = summarise(read(tmp_path, HEARD[name]), 1).notes()
        assert lines == [f"1 file: there is no sound: {words} (missing_audio): mute.mp4"]
    assert summarise(read(tmp_path, CutRule(64 * 64, 16, 9, 4, Fraction(8))), 1).notes() == []
