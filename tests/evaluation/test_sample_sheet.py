"""The sample sheet script on tiny models; for sound see tests/training/test_toy_av_run.py."""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import sample_sheet  # noqa: E402


@pytest.mark.parametrize(
    ("model", "size", "prompts"),
    [("tiny_wan", "5x64x64", 10), ("tiny_sd", "64x64", 50)],
)
def test_a_sheet_shows_every_prompt(model, size, prompts, request, tmp_path, monkeypatch, capsys):
    folder = request.getfixturevalue(model)
    target = tmp_path / "sheets" / "sheet.png"
    given = ["sample_sheet.py", "--model", str(folder), "--size", size, "--steps", "1", "-o", str(target)]
    monkeypatch.setattr(sys, "argv", given)
    assert sample_sheet.main() == 0
    told = capsys.readouterr().out
    assert told.count("judged:") == prompts
    page = iio.imread(target)
    assert page.shape[1] > 300 and page.std() > 1


def test_a_wrong_size_is_refused(tiny_sd, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["sample_sheet.py", "--model", str(tiny_sd), "--size", "64", "-o", str(tmp_path / "a.png")]
    )
    assert sample_sheet.main() == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err and not (tmp_path / "a.png").exists()
