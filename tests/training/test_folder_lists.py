"""Lists of files and captions: tables in folders, lists of paths, data sets of other trainers."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.families.sizes import SizeRule
from genkit.training.data.folder.data import FolderData
from genkit.training.data.folder.items import Wanted, read_folder
from genkit.training.data.folder.rules import FolderRule, ModelRule, folder_rules
from genkit.training.data.folder.toml import read_dataset_toml
from genkit.training.data.source import DataSource
from genkit.training.lora.groups import DataSettings


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    return path


def rows(path, *values):
    path.write_text("\n".join(map(json.dumps, values)))
    return path


def test_every_folder_may_have_its_table_with_further_columns(tmp_path):
    for name in ("a.png", "train/b.png", "train/deep/c.png"):
        picture(tmp_path / name)
    rows(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "one", "label": 3, "objects": {"bbox": [1]}})
    (tmp_path / "train" / "metadata.csv").write_text("file_name,score,text\nb.png,0.5,two\ndeep/c.png,,three\n")
    folder = read_folder(tmp_path)
    assert [item.caption for item in folder.items] == ["one", "two", "three"] and folder.unused == ()
    rows(tmp_path / "metadata.jsonl", {"filename": "a.png", "text": "one"})
    with pytest.raises(UsageError, match=r"line 1 has no file \(its columns: filename, text\); allowed: a column"):
        read_folder(tmp_path)


def test_a_list_names_files_anywhere(tmp_path):
    picture(tmp_path / "here" / "a.png"), picture(tmp_path / "there" / "b.png")
    picture(tmp_path / "edges" / "b.png"), picture(tmp_path / "here" / "mask.png")
    found = rows(
        tmp_path / "here" / "list.jsonl",
        {"image_path": "a.png", "caption": "one", "mask_path": "mask.png"},
        {"image_path": str(tmp_path / "there" / "b.png"), "caption": "two", "control_path": "../edges/b.png"},
    )
    items = read_folder(found).items
    assert [(item.path.name, item.caption) for item in items] == [("a.png", "one"), ("b.png", "two")]
    assert items[0].mask.name == "mask.png" and dict(items[1].given)["control"].exists()
    with pytest.raises(UsageError, match=r"b\.png goes with .*b\.png as control"):
        FolderData.read([FolderRule(str(found), (), takes=())])
    (tmp_path / "l.csv").write_text("video,prompt\nhere/a.png,one\n")
    assert [item.caption for item in read_folder(tmp_path / "l.csv").items] == ["one"]
    (tmp_path / "l.csv").write_text("video\nhere/a.png\n")
    assert [item.caption for item in read_folder(tmp_path / "l.csv", Wanted("all")).items] == ["all"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image_path": "gone.png", "caption": "x"}, r"names files that are not there: .*gone\.png"),
        ({"image_path": "list.jsonl", "caption": "x"}, "no pictures and no videos"),
        ({"image_path": "a.png"}, "files without a caption"),
        ({"picture": "a.png", "caption": "x"}, r"line 1 has no file \(its columns: picture, caption\)"),
        ({"image_path": 3, "caption": "x"}, "image_path is 3, allowed: a path"),
        ({"image_path": "a.png", "caption": [1]}, "caption is .*, allowed: a text"),
    ],
)
def test_bad_rows_of_lists_are_told(tmp_path, row, said):
    picture(tmp_path / "a.png")
    with pytest.raises(GenkitError, match=said):
        read_folder(rows(tmp_path / "list.jsonl", row))


def test_an_empty_list_is_told(tmp_path):
    (tmp_path / "list.csv").write_text("file_name,text\n")
    with pytest.raises(UsageError, match="lists no file"):
        read_folder(tmp_path / "list.csv")


MUSUBI = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = true

[[datasets]]
video_directory = "clips"
cache_directory = "cache"
control_directory = "edges"
target_frames = [1, 25, 45]
frame_extraction = "uniform"
frame_sample = 4
source_fps = 30.0
num_repeats = 2

[[datasets]]
video_jsonl_file = "list.jsonl"
enable_bucket = false
frame_extraction = "full"
max_frames = 80

[[datasets]]
image_directory = "stills"
resolution = 512
bucket_no_upscale = false
fp_latent_window_size = 9
"""

SD_SCRIPTS = """
[general]
shuffle_caption = true
keep_tokens = 0
flip_aug = false

[[datasets]]
resolution = [512, 768]
batch_size = 4

  [[datasets.subsets]]
  image_dir = "cat"
  class_tokens = "sks cat"
  num_repeats = 10

  [[datasets.subsets]]
  image_dir = "more"
  caption_extension = ".caption"
  caption_dropout_rate = 0.1
"""


def test_data_sets_of_musubi_tuner_are_taken_over(tmp_path):
    (tmp_path / "a.toml").write_text(MUSUBI)
    sources, told = read_dataset_toml(tmp_path / "a.toml")
    first, second, third = sources
    assert first == DataSource(
        "clips", 2, caption_extension=".txt", control="edges", resolution=("723",), num_frames=(1, 25, 45),
        frame_extraction="uniform", frame_samples=4, aspect_buckets=True, upscale=False,
    )  # fmt: skip
    assert (second.path, second.resolution, second.num_frames, second.aspect_buckets, second.upscale) == (
        "list.jsonl", ("544x960",), (80,), False, True,
    )  # fmt: skip
    assert (third.path, third.resolution, third.upscale, third.frame_extraction) == ("stills", ("512",), True, None)
    assert [line.split()[0] for line in told] == [
        "batch_size", "cache_directory", "source_fps", "fp_latent_window_size",
    ]  # fmt: skip
    rules = folder_rules(
        [DataSource(str(tmp_path / "a.toml"))], DataSettings(),
        ModelRule(SizeRule(16, 4), 480, 81, Fraction(16), takes=("control",)),
    )  # fmt: skip
    assert [len(rule.cuts) for rule in rules] == [3, 1, 1] and rules[0].told == told
    assert [cut.frames for cut in rules[0].cuts] == [1, 25, 45] and rules[1].cuts[0].frames == 77
    assert rules[1].cuts[0].sides == (544, 960) and rules[0].cuts[0].sides is None
    assert rules[0].cuts[0].area >= 960 * 544 and rules[2].cuts[0].enlarge


def test_data_sets_of_sd_scripts_are_taken_over(tmp_path):
    (tmp_path / "a.toml").write_text(SD_SCRIPTS)
    sources, told = read_dataset_toml(tmp_path / "a.toml")
    assert [(each.path, each.num_repeats, each.caption, each.resolution) for each in sources] == [
        ("cat", 10, "sks cat", ("768x512",)), ("more", None, None, ("768x512",)),
    ]  # fmt: skip
    assert sources[1].caption_dropout == 0.1 and sources[1].caption_extension == ".caption"
    assert [line.split(" ")[0] for line in told] == ["shuffle_caption", "batch_size"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[general]\nresolution = 512\n", r"\[\[datasets\]\] is None, allowed: at least one table"),
        ("[dataset]\na = 1\n", "'dataset' is no key of it; did you mean 'datasets'"),
        ("[[datasets]]\nvideo_dirctory = 'a'\n", "data set 1: 'video_dirctory' is no key .*mean 'video_directory'"),
        ("[[datasets]]\nresolution = 512\n", "data set 1 has no folder; allowed: one of image_directory"),
        ("[[datasets]]\nimage_directory = 'a'\nvideo_directory = 'b'\n", "image_directory and video_directory"),
        ("[[datasets]]\nimage_directory = 3\n", "image_directory: got 3, allowed: a text"),
        ("[[datasets]]\nimage_directory = 'a'\nresolution = [1, 2, 3]\n", "resolution: got .*a whole number"),
        ("[[datasets]]\nvideo_directory = 'a'\nframe_extraction = 'tail'\n", "frame_extraction: got 'tail'"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nis_reg = true\n", "subset 1: is_reg is true"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeat = 2\n", "'num_repeat' .*num_repeats"),
        ("datasets = 3\n", "is 3, allowed: at least one table"),
        ("[[datasets]\n", "no valid TOML"),
    ],
)  # fmt: skip
def test_data_sets_that_cannot_be_read_are_told_with_their_place(tmp_path, text, said):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(GenkitError, match=said) as told:
        read_dataset_toml(tmp_path / "a.toml")
    assert "\n" not in str(told.value)


def test_a_toml_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read the data sets .*it does not exist"):
        read_dataset_toml(tmp_path / "gone.toml")
