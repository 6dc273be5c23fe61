"""Every way a file can be no ordinary, readable, bounded one gives one line, at once."""

from __future__ import annotations

import codecs
import json
import os
import time

import pytest

from genkit.errors import ArtifactError
from genkit.reading import file_digest, open_file, parse_json, read_bytes, read_json, read_text, read_toml, read_yaml
from genkit.reading.data import MOST_ALIASES


@pytest.fixture
def places(tmp_path):
    """Paths that are no ordinary files, each with what the message says."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    return {
        "/dev/zero": "it is a device",
        tmp_path / "pipe": "it is a pipe",
        tmp_path / "folder": "it is a folder",
        tmp_path / "one": "links lead in a circle",
        tmp_path / "none": "does not exist",
        "a\0b": "name is none that a file can have",
        "x" * 5000: "File name too long",
        "esc\x1b[31m": "esc\\\\x1b",
    }


def test_only_ordinary_files_are_opened(places):
    for path, text in places.items():
        for read in (open_file, lambda path: read_bytes(path, 10), read_text, read_json, read_yaml, file_digest):
            with pytest.raises(ArtifactError, match=text) as caught:
                read(path)
            message = str(caught.value)
            assert len(message) < 500 and message.isprintable()


def test_a_file_larger_than_the_limit_is_not_read_whole(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="larger than 256 MiB"):
        read_json(path)
    path.write_bytes(b"abc")
    assert read_bytes(path, 3) == b"abc"
    with pytest.raises(ArtifactError, match="larger than"):
        read_bytes(path, 2)


@pytest.mark.parametrize("mark, encoding", [
    (b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
])  # fmt: skip
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, mark, encoding):
    path = tmp_path / "text"
    path.write_bytes(mark + '{"é": 1}\n'.encode(encoding))
    assert read_text(path) == '{"é": 1}\n'
    assert read_json(path) == read_yaml(path) == {"é": 1}


def test_texts_in_other_encodings_are_named(tmp_path):
    path = tmp_path / "text"
    for data, text in ((b"caf\xe9", r"no text in UTF-8 \(byte 3\)"), (b"a\0b", "NUL"), (b"\xff\xfea", "no text")):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=text):
            read_text(path, what="prompt file")


JSON = {
    "deep": ("[" * 100_000 + "]" * 100_000, "nests deeper"),
    "deep and long": ("[" * 5_000_000, "nests too deep"),
    "deep and open": ('{"a":' * 100_000, "nests deeper"),
    "quotes": ('"\\"' * 200_000, "no valid JSON"),
    "many digits": ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
    "cut": ('{"a": [1, 2', "no valid JSON"),
    "nothing": ("", "no valid JSON"),
    "words": ("not json", "no valid JSON"),
    "many": ("[" + "[]," * 1_000_001 + "[]]", "more than 1000000"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_beyond_the_limits_is_refused_at_once(name):
    text, told = JSON[name]
    began = time.process_time()
    with pytest.raises(ArtifactError, match=told) as caught:
        parse_json(text, "file.json")
    assert time.process_time() - began < 4
    assert str(caught.value).startswith("file.json") and len(str(caught.value)) < 200


def test_nan_and_infinity_are_refused_where_numbers_must_be_finite():
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}', "1e999"):
        parse_json(text, "x")
        with pytest.raises(ArtifactError, match="x is not read"):
            parse_json(text, "x", finite=True)
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}', "x", finite=True)


def bomb(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    return "\n".join(lines + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 3)}]}}" for n in range(1, levels)])


YAML = {
    "alias bomb": (bomb(9), f"more than {MOST_ALIASES} aliases"),
    "small alias bomb": (bomb(16, 2), "more than 20000 values"),
    "merge bomb": (merge_bomb(30), "aliases"),
    "itself": ("a: &a [*a]", "contains itself"),
    "itself as a mapping": ("a: &a {b: *a}", "contains itself"),
    "deep": ("[" * 5000 + "]" * 5000, "nests deeper"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(300)), "nests deeper"),
    "many digits": ("a: " + "9" * 5000, "5000 digits"),
    "no date": ("a: 2024-99-99", "no valid YAML"),
    "list as key": ("? [a]\n: b", "no valid YAML"),
    "python object": ("a: !!python/object/apply:os.system [ls]", "no valid YAML"),
    "control": ("a: \x07", "no valid YAML"),
    "open": ("a: [1, 2", "no valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
def test_yaml_beyond_the_limits_is_refused_at_once(tmp_path, name):
    text, told = YAML[name]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ArtifactError, match=told) as caught:
        read_yaml(path)
    assert time.process_time() - began < 4
    assert len(str(caught.value)) < 400 and len(str(caught.value).splitlines()) == 1


def test_ordinary_yaml_and_aliases_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base: &b {steps: 3}\nagain: *b\nmore: {<<: *b, fps: 12}\nlist: [1, 2.5, x, null, true]\n")
    base = {"steps": 3}
    assert read_yaml(path) == {
        "base": base, "again": base, "more": {**base, "fps": 12}, "list": [1, 2.5, "x", None, True]
    }  # fmt: skip
    path.write_text("")
    assert read_yaml(path) is None
    path.write_text(json.dumps({"a": [1, {"b": "c"}]}))
    assert read_yaml(path) == read_json(path)


def test_toml_is_read_within_limits(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[general]\nsize = [1, 2]\n[[sets]]\nname = "é"\n', encoding="utf-8")
    assert read_toml(path) == {"general": {"size": [1, 2]}, "sets": [{"name": "é"}]}
    for text, said in (
        ("a = 1\na = 2", "no valid TOML"),
        ("a = " + "[" * 50_000, "nests"),
        (".".join("a" * 50_000) + " = 1", "nests deeper than 64 levels"),
        ('"a".' * 60_000 + "b = 1", "nests deeper than 64 levels"),
        ("a = " + "1" * 5000, "more than 320 digits"),
        ("a" * 200_000, "no valid TOML"),
        ("a = [" + "1," * 25_000 + "]", "more than 20000 values"),
        ("#" * 300_000, "larger than 256 KiB"),
    ):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=said) as told:
            read_toml(path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("rank: 2\nseed: 1\nrank: 4\n", "rank stands in it twice (lines 1 and 3)"),
        ('{"rank": 2,\n "rank": 2}', "rank stands in it twice (lines 1 and 2)"),
        ("data:\n- path: a\n  path: b\n", "path stands in it twice (lines 2 and 3)"),
    ],
)
def test_a_name_that_stands_twice_in_a_mapping_is_refused(tmp_path, text, words):
    path = tmp_path / "lora.yaml"
    path.write_text(text)
    with pytest.raises(ArtifactError) as found:
        read_yaml(path)
    assert words in str(found.value)


def test_the_same_name_in_two_mappings_and_what_a_merge_replaces_are_fine(tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text("base: &base\n  a: 1\n  b: 2\nmore:\n  <<: *base\n  b: 3\n1: x\n'1': y\n")
    assert read_yaml(path) == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}, 1: "x", "1": "y"}
