"""--force removes and replaces only what genkit wrote, names mean what they say, and a killed run leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.errors import ArtifactError, UsageError
from genkit.media import atomic

RECORD = {"settings": {"steps": 3}}
FRAMES = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 100


def foreign(path, colour="red"):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path.read_bytes()


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_numbered_frames_leave_pictures_of_others_alone(tmp_path):
    date = foreign(tmp_path / "20230101.png")
    padded = foreign(tmp_path / "007.png")
    media.write_media(tmp_path / "%d.png", FRAMES, settings=RECORD, force=True)
    media.write_media(tmp_path / "%d.png", FRAMES[:1], settings=RECORD, force=True)
    assert names(tmp_path) == ["0.png", "007.png", "20230101.png", "frames.png.json"]
    assert (tmp_path / "20230101.png").read_bytes() == date and (tmp_path / "007.png").read_bytes() == padded


def test_a_frame_of_others_in_the_way_is_not_replaced(tmp_path):
    mine = foreign(tmp_path / "1.png")
    for check in (lambda path: media.check_output(path, force=True),
                  lambda path: media.write_media(path, FRAMES, settings=RECORD, force=True)):  # fmt: skip
        with pytest.raises(ArtifactError, match="1.png was not written by genkit"):
            check(tmp_path / "%d.png")
    assert names(tmp_path) == ["1.png"] and (tmp_path / "1.png").read_bytes() == mine


def test_a_folder_with_a_frame_of_others_is_not_replaced(tmp_path):
    media.write_media(tmp_path / "out", FRAMES, settings=RECORD)
    mine = foreign(tmp_path / "out" / "frame-0900.png")
    with pytest.raises(ArtifactError, match="frame-0900.png', which genkit did not write"):
        media.write_media(tmp_path / "out", FRAMES, settings=RECORD, force=True)
    assert (tmp_path / "out" / "frame-0900.png").read_bytes() == mine and len(names(tmp_path / "out")) == 4


def test_a_link_to_a_folder_is_not_replaced(tmp_path):
    media.write_media(tmp_path / "real", FRAMES, settings=RECORD)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="is a link"):
        media.write_media(tmp_path / "out", FRAMES, settings=RECORD, force=True)
    assert len(names(tmp_path / "real")) == 3


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[1]", "no json", ""])
def test_a_json_of_others_beside_an_output_is_not_replaced(tmp_path, content):
    (tmp_path / "a.gif.json").write_text(content)
    for settings in (RECORD, None):
        with pytest.raises(ArtifactError, match="a.gif.json was not written by genkit"):
            media.write_media(tmp_path / "a.gif", FRAMES, 8, settings=settings, force=True)
    assert (tmp_path / "a.gif.json").read_text() == content and names(tmp_path) == ["a.gif.json"]


@pytest.mark.parametrize("name", ["a.gif", "out", "f-%04d.png", "a.mp4"])
def test_own_outputs_are_replaced_whole(tmp_path, name):
    media.write_media(tmp_path / name, FRAMES, 8, settings=RECORD)
    media.write_media(tmp_path / name, FRAMES[:2], 8, force=True)
    assert len(media.read_media(tmp_path / name).frames) == 2
    assert not [each for each in names(tmp_path) if each.endswith(".json")]


def test_a_percent_sign_is_a_number_only_where_it_can_be_one(tmp_path):
    for name, kind in (("100%done.mp4", "mp4"), ("50%deal.png", "png"), ("%dog.gif", "gif"), ("100%", "folder")):
        assert media.format_of(name) == kind
        assert media.numbered(name, 1, 1).name == name
    assert media.numbered("100%done.mp4", 1, 2).name == "100%done-0001.mp4"
    media.write_media(tmp_path / "100%done.mp4", FRAMES, 8, settings=RECORD)
    assert names(tmp_path) == ["100%done.mp4", "100%done.mp4.json"]
    assert media.format_of("f-%04d.png") == media.format_of("%d.png") == "pattern"


def test_the_record_of_numbered_frames_has_a_name_without_a_percent_sign(tmp_path):
    media.write_media(tmp_path / "f-%04d.png", FRAMES, settings=RECORD)
    assert names(tmp_path) == ["f-0000.png", "f-0001.png", "f-0002.png", "f-frames.png.json"]
    for name in ("f-%04d.png", "f-0001.png", "f-frames.png.json"):
        assert media.read_settings(tmp_path / name) == RECORD


@pytest.mark.parametrize("name", ["%0999999999d.mp4", "%099999d.png", "%" + "9" * 300 + "d.png", "%021d.gif"])
def test_huge_widths_are_refused_at_once(name):
    for use in (
        media.format_of,
        lambda name: media.numbered(name, 3, 9),
        lambda name: media.numbered(name, 3, 9, still=True),
    ):
        with pytest.raises(UsageError, match="width up to 20") as caught:
            use(name)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["a\0.mp4", "a\ud800.mp4"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    with pytest.raises((UsageError, ArtifactError)) as caught:
        media.check_output(tmp_path / name)
    assert str(caught.value).isprintable()


KILLED = """
import os, signal, sys
from pathlib import Path
from genkit.media.atomic import Files
with Files() as files:
    files.new(Path("clip.png")).write_bytes(b"half")
    folder = files.new(Path("frames"))
    folder.mkdir()
    (folder / "frame-0000.png").write_bytes(b"half")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == -9 and len([name for name in names(tmp_path) if name.startswith(".genkit-")]) == 3
    # Of a process that is alive, of another machine, and of somebody else.
    kept = [f".genkit-{atomic._machine()}-{os.getpid()}-{'0' * 12}.png", f".genkit-00000000-1-{'0' * 12}.png",
            ".genkit-notes.txt", ".genkit"]  # fmt: skip
    for name in kept:
        (tmp_path / name).write_text("x")
    media.write_media(tmp_path / "b.gif", FRAMES, 8)
    assert names(tmp_path) == sorted([*kept, "b.gif"])


def test_an_output_that_was_being_replaced_gets_its_name_back(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    retired = tmp_path / f".genkit-{atomic._machine()}-{dead.stdout.strip()}-{'0' * 12}.old.out"
    media.write_media(tmp_path / "out", FRAMES, settings=RECORD)
    (tmp_path / "out").rename(retired)
    media.write_media(tmp_path / "b.gif", FRAMES, 8)
    assert len(media.read_media(tmp_path / "out").frames) == 3 and not retired.exists()


def test_records_are_read_from_trusted_looking_files_of_any_content(tmp_path):
    for content in ("null", "[]", "5", '"x"', "{}", '{"settings": 1', "[" * 10**5, '{"a": ' + "9" * 9999 + "}"):
        (tmp_path / "a.mp4.json").write_text(content)
        with pytest.raises(ArtifactError) as caught:
            media.read_settings(tmp_path / "a.mp4.json")
        assert len(str(caught.value)) < 400
    (tmp_path / "a.mp4.json").write_text("\ufeff" + json.dumps(RECORD))
    assert media.read_settings(tmp_path / "a.mp4.json") == RECORD
