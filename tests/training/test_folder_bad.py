"""Files that cannot be trained on, or only with a choice: told by name, all at once, before a model is loaded."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from genkit.errors import GenkitError, UsageError
from genkit.families.sizes import SizeRule
from genkit.media.files import write_media
from genkit.training.data.folder.cuts import CutRule
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.items import Wanted, read_folder
from genkit.training.data.folder.read import read_pixels
from genkit.training.data.folder.rules import FolderRule, ModelRule, folder_rules
from genkit.training.data.source import DataSource
from genkit.training.lora.settings import LoraSettings

#: Of a model for pictures.
SIZES = ModelRule(SizeRule(8, 1), None)
RULE = CutRule(64 * 64, 16, 9, 4, Fraction(8))


def read(folder, rule=RULE, **more) -> FolderData:
    return FolderData.read([FolderRule(str(folder), (rule,), **{"caption": "x", **more})])


def lines(data: FolderData) -> list[str]:
    return [line for cut in data.cuts for line in cut.told]


def noise(frames=9, height=64, width=64):
    return np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), np.uint8)


def clip(path, frames=9, fps=8, **sizes):
    write_media(path, noise(frames, **sizes), fps, force=True)
    return path


def written(path, frames=33, **options):
    """An .mp4; with movflags="faststart" its head comes first, and it can be read though its end is missing."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=8, width=64, height=64, pix_fmt="yuv420p")
        for pixels in noise(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def varying(path):
    """Frames that are shown for 1, 3, 1, 3, ... eighths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, width=64, height=64, pix_fmt="yuv420p")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 8)
        time = 0
        for number, pixels in enumerate(noise(12)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 8)
            time += 3 if number % 2 else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video_that_is_cut_off_is_refused(tmp_path):
    path = written(tmp_path / "a.mp4", movflags="faststart")
    assert len(read(tmp_path).cuts) == 1
    whole = path.read_bytes()
    for rest in (whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(rest)
        with pytest.raises(UsageError, match=r"a\.mp4: the file is cut off: it lacks \d+ frames? that it promises"):
            read(tmp_path)
    written(path)  # its head comes last: nothing can be read without it
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UsageError, match=r"1 of 1 file cannot be used: cannot read .*a\.mp4 as video"):
        read(tmp_path)


def test_a_video_whose_middle_is_damaged_is_refused_when_it_is_read(tmp_path):
    path = clip(tmp_path / "a.mp4", 17)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(GenkitError, match=r"a\.mp4"):
        for cut in read(tmp_path, CutRule(64 * 64, 16, 17, 4, Fraction(8))).cuts:
            read_pixels(cut)


def test_a_varying_frame_rate_is_told_and_brought_to_even_steps(tmp_path):
    varying(tmp_path / "a.mp4")
    data = read(tmp_path)
    assert any("frame rate varies" in line for line in lines(data))
    frames = data.cuts[0].frames
    assert frames[0] == 0 and max(np.bincount(frames)) == 3  # what is shown three times as long comes three times


def test_a_clip_shorter_than_asked_gets_a_bucket_of_its_own(tmp_path):
    clip(tmp_path / "a.mp4", 7)
    assert read(tmp_path).cuts[0].bucket.frames == 5
    clip(tmp_path / "a.mp4", 4)
    with pytest.raises(UsageError, match=r"a\.mp4: 4 frames at 8 frames per second; allowed: at least 5"):
        read(tmp_path)


def test_a_sample_of_every_frame_is_refused():
    with pytest.raises(UsageError, match="num_frames: got 1 with frame_extraction chunk, which would make a sample of"):
        CutRule(64 * 64, 16, 1, 4, extraction="chunk")


def saved(path, mode: str, **more):
    pixels = noise(1)[0]
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([pixels, np.full((64, 64), 90, np.uint8)]))
    elif mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32))
    else:
        image = Image.fromarray(pixels).convert(mode)
    image.save(path, **more)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("a.png", "RGBA", "transparent parts of a.png were laid on white"),
        ("a.jpg", "CMYK", None),
        ("a.png", "L", None),
        ("a.png", "P", None),
        ("a.png", "1", None),
        ("a.png", "I;16", None),
        ("a.webp", "RGB", None),
        ("a.bmp", "RGB", None),
    ],
)
def test_pictures_of_every_kind_are_read_as_colours(tmp_path, name, mode, said):
    saved(tmp_path / name, mode)
    data = read(tmp_path)
    pixels = read_pixels(data.cuts[0])
    assert pixels.shape == (1, 64, 64, 3) and pixels.dtype == np.uint8 and 30 < pixels.mean() < 225
    assert (said is None and not lines(data)) or any(said in line for line in lines(data))


def test_a_picture_without_a_white_is_refused(tmp_path):
    saved(tmp_path / "a.tif", "F")
    with pytest.raises(UsageError, match=r"a\.tif as an image: its values have no fixed white"):
        read(tmp_path)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    cut = read(tmp_path, CutRule(128 * 64, 16)).cuts[0]
    found = read_pixels(cut)[0]
    assert cut.original == (128, 64) and found[:60].mean() > 250 and found[68:].mean() < 5


def test_the_first_picture_of_an_animation_is_told(tmp_path):
    frames = [Image.fromarray(pixels) for pixels in noise(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    data = read(tmp_path)
    assert np.array_equal(read_pixels(data.cuts[0])[0], noise(3)[0])
    assert lines(data) == ["a.webp is an animation of 3 pictures; the first was taken"]


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.webm", "a.tif"])
def test_empty_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"1 of 1 file cannot be used: cannot read .*{name}"):
        read(tmp_path)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.fromarray(np.zeros((1, 1), np.uint8)).resize((20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a\.png"):
        read(tmp_path)


def test_captions_that_are_no_text_are_told_all_at_once(tmp_path):
    for name, text in (("a", b"caf\xe9"), ("b", b"nul\0"), ("c", "größer".encode("utf-16")), ("d", b"x" * 100_000)):
        saved(tmp_path / f"{name}.png", "RGB")
        (tmp_path / f"{name}.txt").write_bytes(text)
    with pytest.raises(UsageError, match=r"3 captions .*a\.txt: it is no text in UTF-8.*b\.txt.*d\.txt"):
        read_folder(tmp_path)
    for name in "abd":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [item.caption for item in read_folder(tmp_path).items] == ["a", "b", "größer", "d"]


def test_links_are_followed_once(tmp_path):
    saved(tmp_path / "a.png", "RGB")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    saved(outside / "b.png", "RGB")
    (tmp_path / "linked").symlink_to(outside)
    assert [item.path.name for item in read_folder(tmp_path, Wanted("x")).items] == ["a.png", "b.png"]
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    (tmp_path / "d.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UsageError, match=r"2 of 4 .*c\.png: its links lead in a circle.*d\.png: it does not exist"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.raises(GenkitError, match="cannot read the folder .*secret: Permission denied"):
        read_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    saved(tmp_path / "a.png", "RGB")
    (tmp_path / "secret").mkdir()
    scan = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(GenkitError, match="cannot read the folder .*secret: Permission denied"):
        read_folder(tmp_path)


def test_pipes_and_folders_with_names_of_media_are_told(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.mp4").mkdir()
    saved(tmp_path / "b.mp4" / "c.png", "RGB")
    with pytest.raises(UsageError, match=r"1 of 2 files cannot be used: cannot read .*a\.png: it is a pipe"):
        read(tmp_path)


def test_one_name_for_two_files_is_told(tmp_path):
    saved(tmp_path / "a.png", "RGB"), saved(tmp_path / "a.webp", "RGB")
    (tmp_path / "a.txt").write_text("both")
    assert any("one .txt stands for several files: a.png and a.webp" in line for line in read(tmp_path).told)


def test_one_file_in_two_folders_is_told_and_held_out_in_both(tmp_path):
    for name in ("one/a.png", "two/b.png"):
        (tmp_path / name).parent.mkdir()
        saved(tmp_path / name, "RGB")
    Image.fromarray(noise(1)[0][::-1]).save(tmp_path / "two" / "c.png")
    rules = [FolderRule(str(tmp_path / name), (RULE,), caption=name) for name in ("one", "two")]
    data = FolderData.read(rules)
    assert len(data.cuts) == 3 and any("1 file is there more than once" in line for line in data.told)
    held = FolderData.read(rules, held_out=1)
    assert {len(held.cuts), len(held.held_out)} == {1, 2}
    assert len({(cut.item.path.name, cut.item.caption) for cut in (*held.cuts, *held.held_out)}) == 3


def test_names_that_would_move_the_terminal_are_written_out(tmp_path):
    (tmp_path / "a\x1b[31m\n.png").write_bytes(b"nothing")
    with pytest.raises(UsageError) as told:
        read(tmp_path)
    assert "\x1b" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x7f", "\x9b"])
@pytest.mark.parametrize("place", ["sidecar", "table", "for all"])
def test_control_characters_in_captions_are_refused_with_their_place(tmp_path, character, place):
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    text, more = f"a red{character}[31m circle", {"caption": None}
    if place == "sidecar":
        (tmp_path / "a.txt").write_text(text)
    elif place == "table":
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}))
    with pytest.raises(UsageError) as told:
        if place == "for all":
            more = DataSource(str(tmp_path), caption=text)
            given = {"model": "m", "data": (more,), "output": "o", "max_train_steps": 1, "resolution": "64"}
            folder_rules([more], LoraSettings(**given), SIZES)
        else:
            read(tmp_path, **more)
    where = {"sidecar": "a.txt", "table": "line 1", "for all": "caption:"}[place]
    assert where in str(told.value) and f"control character U+{ord(character):04X}" in str(told.value)
    assert character not in str(told.value)


def test_lines_and_tabs_in_captions_are_spaces(tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red\tcircle\r\nmoves\u2028right\n")
    assert read(tmp_path).cuts[0].item.caption == "a red circle moves right"


def test_a_model_that_tells_no_usual_size_needs_one(tmp_path):
    source = DataSource(str(tmp_path))
    given = {"model": "m", "data": (source,), "output": "o", "max_train_steps": 1}
    with pytest.raises(UsageError, match="tells no usual size; give one, such as --resolution 512"):
        folder_rules([source], LoraSettings(**given), SIZES)
    rules = folder_rules([source], LoraSettings(**given, resolution="64"), SIZES)
    assert rules[0].cuts[0].area == 64 * 64
