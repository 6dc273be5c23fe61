"""Standard output that takes nothing, narrow encodings, control characters, Ctrl-C at any time: one line, promptly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genkit import __version__
from genkit.cli.main import main
from genkit.cli.output import print_table

ROOT = Path(__file__).resolve().parents[2]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def command(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "genkit", *arguments], stderr=subprocess.PIPE, text=True, timeout=300,
        env=environment(**more.pop("env", {})), **more,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["methods"], ["recipes"], ["models", "--json"], ["--version"]])
def test_a_full_device_is_one_line_and_no_success(arguments):
    with open("/dev/full", "w") as full:
        done = command(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "genkit: error: standard output could not be written: No space left on device\n"


def test_a_reader_that_has_ended_is_one_line():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = command("methods", stdout=closed)
    assert (done.returncode, done.stderr) == (1, "genkit: error: the program that reads standard output has ended\n")


def test_closed_standard_output_and_error_are_no_traceback():
    genkit = f'"{sys.executable}" -m genkit'
    script = f"{genkit} methods >&-; echo $?; {genkit} nothing 2>&-; echo $?"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.stdout.split() == ["1", "2"]
    assert done.stderr == "genkit: error: standard output is closed; nothing was printed\n"


def test_ascii_is_enough(tmp_path):
    done = command("methods", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.isascii()
    done = command("models", "Kreis-é-圆", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and "Kreis-\\xe9-\\u5706" in done.stderr


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "a\x1b]0;title\x07", "\x9b2J", "\u202eevil", "x" * 100_000])
def test_what_is_printed_is_only_shown(capsys, text):
    for arguments in (["models", text], ["methods", text], ["recipes", text], ["generate", "a", "--steps", text],
                      ["generate", "a", "--fps", text], ["generate", "a", "--model", text], [text]):  # fmt: skip
        assert main(arguments) in (1, 2)
        captured = capsys.readouterr()
        shown = captured.out + captured.err
        assert shown.replace("\n", "").isprintable() and len(shown) < 4000
        assert len(captured.err.splitlines()) <= 2 and captured.err.splitlines()[-1].startswith("genkit: error: ")


def test_version_and_completion(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"genkit {__version__}\n"
    done = command(stdout=subprocess.PIPE, env={"_GENKIT_COMPLETE": "complete_bash", "COMP_WORDS": "genkit ge",
                                                "COMP_CWORD": "1"})  # fmt: skip
    assert done.stdout.split() == ["generate"]


def test_a_shipped_model_is_described_by_its_name(capsys):
    assert main(["models", "toy-video"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "WanPipeline",
        "AutoencoderKLWan",
        "million weights",
        "default steps",
        "limit max_frames",
        "README.md",
    ):
        assert word in shown
    assert main(["models", "toy-vido"]) == 2
    assert "did you mean 'toy-video'" in capsys.readouterr().err


IN_PLACE_OF_MAIN = """
import hashlib, os, signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
from genkit.cli import interrupt
interrupt.GRACE = 0.5

class Slow:  # the module with everything heavy, while it is imported
    def find_spec(self, name, path, target=None):
        if name == "genkit.cli.main":
            {importing}

def main():
    {running}

sys.meta_path.insert(0, Slow())
if not {really}:
    sys.modules["genkit.cli.main"] = types.SimpleNamespace(main=main)
from genkit.__main__ import run
sys.exit(run())
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)"
CASES = {
    "during the import": {"importing": f"{KILL}; time.sleep(30)", "running": "pass", "really": True},
    "twice": {
        "importing": "pass", "really": False,
        "running": f"try:\n        {KILL}; time.sleep(30)\n    finally:\n        {KILL}; time.sleep(30)",
    },
    "in a long computation": {
        "importing": "pass", "really": False,
        "running": "print('now', flush=True); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)",
    },
    "twice, and the line is slow": {
        "importing": "pass", "really": False,
        "running": "write = os.write; os.write = lambda *to: (time.sleep(0.3), write(*to))\n"
        f"    try:\n        {KILL}; time.sleep(30)\n    finally:\n        {KILL}; time.sleep(30)",
    },
    "while the command writes the line": {
        "importing": "pass", "really": False,
        "running": "with interrupt.telling() as ours:\n"
        f"        {KILL}; time.sleep(0.1); {KILL}; time.sleep(0.1)\n"
        "        print('genkit: error: interrupted' if ours else 'not ours', file=sys.stderr)\n    return 130",
    },
    "while leaving takes long": {
        "importing": "pass", "really": False,
        "running": f"import atexit; atexit.register(time.sleep, 30)\n    {KILL}; time.sleep(30)",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_ends_promptly_in_one_line(case):
    began = time.monotonic()
    code = IN_PLACE_OF_MAIN.format(**CASES[case])
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        if "long" in case and "leaving" not in case:
            assert running.stdout.readline() == "now\n"
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, errors) == (130, "genkit: error: interrupted\n")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("width", [50, 80, 120, 300])
def test_tables_on_a_terminal_keep_every_word_and_its_width(width, monkeypatch, capsys):
    """Columns that do not fit beside the others follow below, each time with the names."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ["name", *(f"family{index}" for index in range(9)), "description"]
    names = ["sliding_window (dual=true)", "hunyuan-video-radial-long"]
    rows = [[name, *("audio_to_video", "self + cross", None) * 3, "as told by the authors " * 4] for name in names]
    print_table(columns, rows)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    shown = [line.split() for line in lines]
    assert max(map(len, lines)) <= width and not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)
    heads = [words for words in shown if "name" in words]
    assert [head for words in heads for head in words if head != "name"] == columns[1:]
    assert all(sum(line.startswith(f" {name} ") for line in lines) == len(heads) for name in names)
    assert (len(heads) == 1) == (width == 300)
    for word, times in (("audio_to_video", 6), ("cross", 6), ("-", 6), ("authors", 8)):
        assert sum(words.count(word) for words in shown) == times
