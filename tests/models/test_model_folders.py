"""Names lead to the right place, and a folder with a missing, truncated or corrupt part is refused by file name."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from genkit.errors import ArtifactError, UsageError
from genkit.models import (  # fmt: skip
    check_folder,
    check_safetensors,
    fingerprint,
    locate,
    read_sidecar,
    registry,
    shipped,
    verify_checksums,
    write_checksums,
)

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_wan, tmp_path):
    return shutil.copytree(tiny_wan, tmp_path / "model")


def test_a_whole_folder_passes(tiny_wan):
    assert check_folder(tiny_wan)["_class_name"] == "WanPipeline"


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(ArtifactError, match=f"no part '{part}'"):
        check_folder(copy)


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "vae/config.json", "tokenizer/tokenizer_config.json", "model_index.json"],
)  # fmt: skip
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match="transformer" if name == WEIGHTS else name):
        check_folder(copy)


def header_of(data: bytes) -> int:
    return struct.unpack("<Q", data[:8])[0]


def damages():
    def set_length(data, length):
        return struct.pack("<Q", length) + data[8:]

    return {
        "empty": lambda data: b"",
        "seven bytes": lambda data: data[:7],
        "header cut": lambda data: data[: 8 + header_of(data) // 2],
        "one byte short": lambda data: data[:-1],
        "half": lambda data: data[: len(data) // 2],
        "one byte long": lambda data: data + b"x",
        "length zero": lambda data: set_length(data, 0),
        "length huge": lambda data: set_length(data, 2**63),
        "header garbage": lambda data: data[:8] + b"\xff" * header_of(data) + data[8 + header_of(data) :],
        "wrong shape": lambda data: data.replace(b'"shape":[', b'"shape":[9', 1)[: len(data)],
        "html page": lambda data: b"<!doctype html><html>not found</html>",
    }


@pytest.mark.parametrize("damage", damages())
def test_damaged_weights_are_named(copy, damage):
    path = copy / WEIGHTS
    path.write_bytes(damages()[damage](path.read_bytes()))
    with pytest.raises(ArtifactError, match="diffusion_pytorch_model.safetensors"):
        check_folder(copy)


def test_a_missing_shard_is_named(copy):
    listing = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "shard-2.safetensors"}}
    (copy / "transformer" / "x.safetensors.index.json").write_text(json.dumps(listing))
    with pytest.raises(ArtifactError, match="shard-2.safetensors is missing"):
        check_folder(copy)


def test_pickles_are_refused(copy):
    (copy / WEIGHTS).rename(copy / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ArtifactError, match="pickle"):
        check_folder(copy)


def test_broken_json_is_named(copy):
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="vae/config.json"):
        check_folder(copy)


def test_one_part_instead_of_the_pipeline(copy):
    with pytest.raises(ArtifactError, match="folder above"):
        check_folder(copy / "transformer")


def test_the_header_of_good_weights_is_returned(tiny_wan):
    header = check_safetensors(tiny_wan / WEIGHTS)
    assert "blocks.0.attn1.to_q.weight" in header


def test_names_and_where_they_lead(copy, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(registry, "shipped", lambda root=tmp_path: shipped(root))
    assert locate("model").kind == "shipped"
    shutil.copytree(copy, tmp_path / "other.part")
    assert list(shipped(tmp_path)) == ["model"]
    assert locate(str(copy)).path == copy
    assert locate("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").kind == "hub"
    assert locate("owner/name@v1.0") == registry.Location("hub", "owner/name", revision="v1.0")
    with pytest.raises(ArtifactError, match="does not exist"):
        locate("./nowhere")
    with pytest.raises(ArtifactError, match="is a file"):
        locate(str(copy / "model_index.json"))
    with pytest.raises(UsageError, match="did you mean 'model'"):
        locate("modell")


def test_checksums_tell_what_changed(copy):
    assert verify_checksums(copy)[0] == "unknown"
    write_checksums(copy)
    assert verify_checksums(copy) == ("ok", [])
    (copy / "genkit.json").write_text("{}")
    (copy / WEIGHTS).unlink()
    assert verify_checksums(copy) == ("changed", ["genkit.json", WEIGHTS])


def test_the_fingerprint_follows_the_weights(copy):
    before = fingerprint(copy)
    assert fingerprint(copy) == before
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    assert fingerprint(copy) != before


def test_the_sidecar_is_checked(copy):
    assert read_sidecar(copy).defaults["num_frames"] == 5
    (copy / "genkit.json").write_text('{"defaults": {"heigth": 3}}')
    with pytest.raises(ArtifactError, match="got 'heigth', allowed: height"):
        read_sidecar(copy)
    (copy / "genkit.json").unlink()
    assert read_sidecar(copy).defaults == {}
