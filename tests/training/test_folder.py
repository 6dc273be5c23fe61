"""A folder of a user's files as training data: captions, buckets, cuts, and errors in one line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from genkit.errors import GenkitError, UsageError
from genkit.media.files import write_media
from genkit.media.images import crop
from genkit.training.data.folder.buckets import Bucket, choose_frames, choose_sides, sides_for
from genkit.training.data.folder.cuts import Cut, CutRule
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.items import Wanted, read_folder
from genkit.training.data.folder.read import read_pixels
from genkit.training.data.folder.rules import FolderRule


def picture(path: Path, height: int = 64, width: int = 64, colour: int = 200) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, colour, width, dtype=np.uint8)[None, :, None]
    Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).copy()).save(path)
    return path


def clip(path: Path, frames: int, fps: int = 8, height: int = 64, width: int = 64) -> Path:
    levels = np.linspace(20, 230, frames).astype(np.uint8)[:, None, None, None]
    write_media(path, np.broadcast_to(levels, (frames, height, width, 3)).copy(), fps, settings={}, force=True)
    path.with_name(path.name + ".json").unlink(missing_ok=True)
    return path


def cut_all(path: Path, *rules: CutRule, **more) -> list[Cut]:
    return list(FolderData.read([FolderRule(str(path), rules or (RULE,), **{"caption": "x", **more})]).cuts)


RULE = CutRule(area=64 * 64, step=16, frames=9, frames_multiple=4, fps=Fraction(8))


def test_captions_stand_beside_in_a_table_or_are_one_for_all(tmp_path):
    for name in ("a.png", "deep/b.JPG", "c.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeffa red\n circle \r\n".encode())
    (tmp_path / "notes.pdf").write_text("x")
    (tmp_path / "gone.txt").write_text("no picture of that name")
    (tmp_path / ".hidden.png").write_text("x")
    table = [{"file_name": "deep/b.JPG", "text": "größer 東京"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)) + "\n\n")
    with pytest.raises(UsageError, match=r"files without a caption .*: c\.png"):
        read_folder(tmp_path)
    folder = read_folder(tmp_path, Wanted("sks"))
    assert [(item.path.name, item.caption) for item in folder.items] == [
        ("a.png", "a red circle"), ("c.png", "sks"), ("b.JPG", "größer 東京"),
    ]  # fmt: skip
    assert set(folder.unused) == {"notes.pdf", "gone.txt"}
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes('\ufefffile_name,caption\r\n"c.png","two, with a comma"\r\n'.encode())
    folder = read_folder(tmp_path, Wanted(""))
    assert [item.caption for item in folder.items] == ["a red circle", "two, with a comma", ""]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("metadata.jsonl", '{"file_name": "x.png", "text": "a"}', r"names files that are not there: x\.png"),
        ("metadata.jsonl", '{"file_name": "../a.png", "text": "a"}', "outside of the folder"),
        ("metadata.jsonl", '{"file_name": "/a.png", "text": "a"}', "outside of the folder"),
        ("metadata.jsonl", '{"file_name": "C:\\\\a.png", "text": "a"}', "outside of the folder"),
        ("metadata.jsonl", '{"file_name": "a.png"}', "line 1 has no caption; allowed: a column named text or caption"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1: text is 3, allowed: a text"),
        ("metadata.jsonl", '{"text": "a"}', "line 1 has no file"),
        ("metadata.jsonl", '["a.png"]', "line 1 is no object"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n{"file_name": "a.png", "text": "b"}', "a second time"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "b"', "line 1"),
        ("metadata.jsonl", '{"file_name": "a\\u001b[31m.png", "text": "b"}', r"a\\x1b\[31m\.png"),
        ("metadata.csv", "name,text\na.png,b\n", "line 2 has no file"),
        ("metadata.csv", 'file_name,text\n"a.png,b\n', "no row of a table"),
        ("a.txt", "another caption", "two captions"),
    ],
)  # fmt: skip
def test_bad_captions_are_told_with_their_place(tmp_path, name, content, text):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    if name == "a.txt":
        (tmp_path / "metadata.csv").write_text("file_name,text\na.png,the first\n")
    with pytest.raises(GenkitError, match=text) as told:
        read_folder(tmp_path)
    assert "\n" not in str(told.value) and "\x1b" not in str(told.value)


def test_folders_without_media_are_told(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        read_folder(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"no picture and no video; allowed: files that end in \.png"):
        read_folder(tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"both metadata\.jsonl and metadata\.csv"):
        read_folder(tmp_path)


def test_buckets_keep_area_step_and_ratio():
    sides = sides_for(128 * 128, 16)
    assert (128, 128) in sides and (192, 80) in sides
    for height, width in sides:
        assert (
            height % 16 == width % 16 == 0 and height * width <= 128 * 128 and max(height / width, width / height) <= 4
        )
    assert choose_sides(720, 1280, 128 * 128, 16) == (96, 160)
    assert choose_sides(1280, 720, 128 * 128, 16) == (160, 96)
    assert choose_sides(500, 500, 128 * 128, 16) == (128, 128)
    assert choose_sides(70, 50, 128 * 128, 16) == (64, 48)  # as large as it is, not larger
    assert choose_sides(70, 50, 128 * 128, 16, enlarge=True) == (144, 112)
    with pytest.raises(UsageError, match="9x200 pixels hold no multiple of 16"):
        choose_sides(200, 9, 128 * 128, 16)


@pytest.mark.parametrize(
    ("available", "most", "expected"), [(1, 81, 1), (4, 81, 1), (5, 81, 5), (80, 81, 77), (200, 81, 81)]
)
def test_frames_are_one_plus_a_multiple_and_never_repeated(available, most, expected):
    assert choose_frames(available, most, 4) == expected


def test_a_cut_covers_the_bucket_in_the_middle():
    assert crop(100, 200, (64, 64)) == (64, 128, 0, 32)
    assert crop(200, 100, (64, 64)) == (128, 64, 32, 0)
    assert crop(33, 47, (64, 96)) == (67, 96, 1, 0)


def test_pictures_are_scaled_and_cut_to_their_buckets(tmp_path):
    picture(tmp_path / "wide.png", 64, 192)
    picture(tmp_path / "square.png", 200, 200)
    cuts = cut_all(tmp_path)
    assert [cut.bucket for cut in cuts] == [Bucket(1, 64, 64), Bucket(1, 32, 96)]
    square, wide = map(read_pixels, cuts)
    assert square.shape == (1, 64, 64, 3) and wide.shape == (1, 32, 96, 3) and wide.dtype == np.uint8
    # the ramp's middle stays in the middle
    assert abs(int(wide[0, 16, 48, 0]) - 100) <= 3 and abs(int(square[0, 32, 32, 0]) - 100) <= 3


def test_clips_are_resampled_by_time_and_cut_into_pieces(tmp_path):
    clip(tmp_path / "a.mp4", frames=48, fps=16)
    (head,) = cut_all(tmp_path)
    assert head.bucket == Bucket(9, 64, 64) and np.diff(head.frames).tolist() == [2] * 8
    pixels = read_pixels(head)
    assert pixels.shape == (9, 64, 64, 3) and (np.diff(pixels.mean((1, 2, 3))) > 0).all()
    chunks = cut_all(tmp_path, CutRule(64 * 64, 16, 9, 4, Fraction(8), extraction="chunk"))
    assert len(chunks) == 2 and chunks[1].frames[0] - chunks[0].frames[-1] == 2
    spread = cut_all(tmp_path, CutRule(64 * 64, 16, 9, 4, Fraction(8), extraction="uniform", pieces=3))
    assert (
        len(spread) == 3 and spread[0].frames == head.frames and spread[-1].frames[-1] == cuts_end(tmp_path / "a.mp4")
    )
    (first,) = cut_all(tmp_path, CutRule(64 * 64, 16, fps=Fraction(8)))
    assert first.bucket.frames == 1
    (slow,) = cut_all(tmp_path, CutRule(64 * 64, 16, 9, 4, Fraction(32)))
    assert any("fewer than 32" in line for line in slow.told)


def cuts_end(path: Path) -> int:
    from genkit.media.read_video import probe_video

    return probe_video(path).chosen(Fraction(8), 10_000)[-1]


def test_a_shorter_clip_gets_a_shorter_bucket_and_a_single_frame_is_refused(tmp_path):
    clip(tmp_path / "a.mp4", frames=7)
    (cut,) = cut_all(tmp_path)
    assert cut.bucket.frames == 5
    clip(tmp_path / "a.mp4", frames=3)
    with pytest.raises(UsageError, match=r"1 of 1 file cannot be used: .*a\.mp4: 3 frames at 8 .* at least 5"):
        cut_all(tmp_path)


def test_all_files_that_cannot_be_used_are_told_at_once(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "tiny.png", 8, 8)
    for name in ("broken.png", "broken.mp4", "empty.webp", "more.jpg"):
        (tmp_path / name).write_bytes(b"nothing" if "empty" not in name else b"")
    with pytest.raises(UsageError, match=r"5 of 6 files cannot be used: .*broken\.mp4.*; and 2 more") as told:
        cut_all(tmp_path)
    assert "\n" not in str(told.value)


def test_rules_that_cannot_be_kept_are_refused():
    with pytest.raises(UsageError, match=r"num_frames: got 10, allowed: 1 plus a multiple of 4; try 9 or 13"):
        CutRule(64, 16, 10, 4)
    with pytest.raises(UsageError, match="frame_extraction: got 'tail', allowed: head, chunk, slide, uniform, full"):
        CutRule(64, 16, extraction="tail")
    with pytest.raises(UsageError, match="must be above 0"):
        CutRule(0, 16)
