"""Caches on disk: hits, misses for whatever changed, damage told, nothing half written."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from genkit.errors import ArtifactError
from genkit.training.data.cache import Cache, fingerprint

KEY = {"content": "abc", "bucket": [1, 64, 64], "frames": [0], "dtype": "float16"}


def counting(calls: list[int]):
    def make():
        calls.append(1)
        return {"mean": torch.arange(6.0).view(2, 3).T, "mask": torch.ones(2, dtype=torch.bool)}

    return make


def test_an_entry_is_made_once_and_read_as_it_was(tmp_path):
    cache, calls = Cache(tmp_path / "cache"), []
    assert not cache.holds(KEY)
    first = cache.get(KEY, counting(calls))
    again = Cache(tmp_path / "cache").get(dict(reversed(KEY.items())), counting(calls))
    assert len(calls) == 1 and cache.holds(KEY) and first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) and first[name].dtype == again[name].dtype for name in first)


@pytest.mark.parametrize("change", [{"content": "abd"}, {"bucket": [1, 64, 80]}, {"dtype": "float32"}, {"new": 0}])
def test_whatever_changes_the_key_has_its_own_entry(tmp_path, change):
    cache, calls = Cache(tmp_path), []
    cache.get(KEY, counting(calls))
    cache.get({**KEY, **change}, counting(calls))
    assert len(calls) == 2
    assert cache.stale([KEY]) == [cache.path_of({**KEY, **change})] and cache.stale([KEY, {**KEY, **change}]) == []


def test_damaged_and_foreign_entries_are_told(tmp_path):
    cache = Cache(tmp_path)
    cache.get(KEY, counting([]))
    path = cache.path_of(KEY)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="no readable entry of a cache .*; delete it"):
        cache.get(KEY, counting([]))
    path.write_bytes(whole)
    other = {**KEY, "content": "other"}
    cache.path_of(other).parent.mkdir(exist_ok=True)
    os.replace(path, cache.path_of(other))
    with pytest.raises(ArtifactError, match="not the entry that its name says"):
        cache.get(other, counting([]))


@pytest.mark.parametrize("change", ["names", "shapes", "types", "untold"])
def test_other_tensors_under_the_right_key_are_told_and_made_anew(tmp_path, change):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    cache = Cache(tmp_path)
    held = cache.get(KEY, counting([]))
    path = cache.path_of(KEY)
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    other = {
        "names": {"latents": held["mean"], "mask": held["mask"]},
        "shapes": {**held, "mean": torch.zeros(5)},
        "types": {**held, "mean": held["mean"].half()},
        "untold": held,
    }[change]
    if change == "untold":
        del texts["genkit_tensors"]
    save_file({name: value.contiguous() for name, value in other.items()}, path, texts)
    assert load_file(path).keys() == other.keys() and cache.holds(KEY)
    with pytest.raises(ArtifactError, match="holds other tensors than were written under its key; delete it"):
        cache.get(KEY, counting([]))
    assert "other tensors" in cache.damage(KEY)


def test_a_failure_leaves_no_entry(tmp_path, monkeypatch):
    import safetensors.torch

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(ArtifactError, match="No space left"):
        Cache(tmp_path).get(KEY, counting([]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_fingerprint_follows_every_weight_and_setting(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    settings = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    model = AutoencoderKL(**settings)
    told = fingerprint(model)
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoencoderKL.from_pretrained(tmp_path)) == told
    assert fingerprint(model, None) != told != fingerprint(model.to(torch.bfloat16))
    model = AutoencoderKL.from_pretrained(tmp_path)
    model.register_to_config(scaling_factor=0.5)
    assert fingerprint(model) != told
    model = AutoencoderKL.from_pretrained(tmp_path)
    with torch.no_grad():
        model.decoder.conv_out.bias[0] += 1e-4
    assert fingerprint(model) != told
    assert fingerprint(nn.Linear(2, 2)) != fingerprint(nn.Linear(2, 2))
