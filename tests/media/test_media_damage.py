"""Whatever bytes a file holds, reading it gives a result or one of genkit's own errors."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from genkit import media
from genkit.errors import GenkitError
from genkit.models import check_safetensors

ROUNDS = 40


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few bytes changed, cut or inserted."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place, kind = rng.randrange(len(result) + 1), rng.random()
        if kind < 0.7 and place < len(result):
            result[place] = rng.randrange(256)
        elif kind < 0.85:
            del result[place:]
        else:
            result[place:place] = rng.randbytes(rng.randint(1, 9))
    return bytes(result)


@pytest.mark.parametrize("name", ["a.mp4", "sound.mp4", "a.gif", "a.webp", "a.png", "w.safetensors"])
def test_damaged_files_raise_only_our_errors(tmp_path, name):
    path = tmp_path / name
    clip = np.random.default_rng(0).integers(0, 255, (1 if name == "a.png" else 4, 16, 16, 3), dtype=np.uint8)
    if name == "w.safetensors":
        save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, path)
    else:
        sound = {"audio": np.zeros(4000), "sample_rate": 8000} if name == "sound.mp4" else {}
        media.write_media(path, clip, 8, settings={"settings": {}}, **sound)
    read = check_safetensors if name == "w.safetensors" else media.read_media
    whole, rng, refused = path.read_bytes(), random.Random(name), 0
    assert read(path)
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(path)
            except GenkitError as error:
                refused += 1
                assert len(str(error).splitlines()) == 1
    assert refused > 0
