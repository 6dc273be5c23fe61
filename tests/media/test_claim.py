"""Of two runs at once one may write an output; a claim ends with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genkit.cli.main import main
from genkit.errors import UsageError
from genkit.media import claim
from genkit.media.claim import claimed

pytestmark = pytest.mark.skipif(claim.fcntl is None, reason="no locks of files on this system")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(claim.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))


def test_one_name_has_one_writer_at_a_time(tmp_path):
    one, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    (tmp_path / "link").symlink_to(tmp_path)
    with claimed([one]):
        with claimed([other]):
            pass
        for same in (one, tmp_path / "link" / "a.mp4", tmp_path / "tmp" / ".." / "a.mp4"):
            with pytest.raises(UsageError, match=r"another run is writing .*a\.mp4"), claimed([other, same]):
                pass
        with claimed([other]):  # nothing stays of a claim that was refused
            pass
    with claimed([one]):
        pass
    assert not one.exists() and [path.name for path in tmp_path.iterdir() if path.name not in ("link", "tmp")] == []


def test_a_killed_process_leaves_no_claim(tmp_path):
    code = (
        "import sys, time, tempfile; tempfile.gettempdir = lambda: sys.argv[2]\n"
        "from pathlib import Path\nfrom genkit.media.claim import claimed\n"
        "with claimed([Path(sys.argv[1])]):\n    print('held', flush=True); time.sleep(600)"
    )
    path = tmp_path / "a.png"
    told = [sys.executable, "-c", code, str(path), str(tmp_path / "tmp")]
    with subprocess.Popen(told, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another run"), claimed([path]):
            pass
        process.kill()
    with claimed([path]):
        pass


def test_where_no_lock_can_be_made_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(claim.tempfile, "gettempdir", lambda: str(tmp_path / "none" / "such"))
    with claimed([tmp_path / "a.png"]), claimed([tmp_path / "a.png"]):
        pass


def test_the_second_of_two_commands_ends_before_the_model_is_loaded(tmp_path, tiny_wan, monkeypatch, capsys):
    from genkit.pipelines.session import Session

    monkeypatch.setattr(Session, "load", lambda self: pytest.fail("loaded"))
    path = tmp_path / "a.mp4"
    words = ["generate", "a red circle", "--model", str(tiny_wan), "--steps", "1", "-o", str(path)]
    with claimed([path]):
        assert main(words) == 2
    told = capsys.readouterr().err
    assert "another run is writing" in told and "choose another --output" in told and not path.exists()
