"""`genkit generate` end to end: outputs, repeats, batches, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from genkit import media
from genkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PROGRESS = re.compile(r"genkit: (loading |output \d+/\d+: step)")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny_wan):
    """Run the command in an empty folder; returns (exit code, standard output, standard error lines without
    progress)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*arguments, model=tiny_wan):
        chosen = [] if model is None else ["--model", str(model)]
        code = main(["generate", *map(str, arguments), *chosen])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if not PROGRESS.match(line)]
        return code, captured.out, lines

    return call


def files():
    return sorted(path.name for path in Path().rglob("*"))


def test_an_mp4_with_its_settings(cli):
    code, out, errors = cli("a red circle", "--seed", 7, "-o", "clip.mp4")
    assert (code, errors) == (0, [])
    assert "clip.mp4  (5 frames 48x32 at 8 fps, seed 7" in out
    assert files() == ["clip.mp4", "clip.mp4.json"]
    inside = media.read_settings("clip.mp4")
    assert inside["settings"]["prompt"] == "a red circle"
    assert inside["settings"]["steps"] == 2
    assert inside == media.read_settings("clip.mp4.json")
    assert json.loads(Path("clip.mp4.json").read_text())["notes"]["seconds"] > 0


def test_json_says_everything(cli):
    code, out, _ = cli("a red circle", "--seed", 7, "-o", "clip.gif", "--json")
    result = json.loads(out)["outputs"][0]
    assert code == 0
    assert (result["file"], result["frames"], result["height"], result["width"], result["fps"]) == (
        "clip.gif",
        5,
        32,
        48,
        "8",
    )
    assert result["files"] == ["clip.gif", "clip.gif.json"]
    assert result["settings"]["model"].endswith("tiny-wan")


def test_from_repeats_bit_for_bit_in_every_format(cli):
    patched = ["--attention", "neighborhood", "--attention-args", "size=1x3x3", "--schedule", "steps=1:,layers=1"]
    cli("a blue square", "--seed", 11, "-o", "one.mp4", "--guidance-scale", 3, *patched)
    cli("--from", "one.mp4", "-o", "two.mp4", model=None)
    assert Path("one.mp4").read_bytes() == Path("two.mp4").read_bytes()
    code, _, errors = cli("--from", "one.mp4.json", "-o", "frames", model=None)
    assert (code, errors) == (0, [])
    cli("--from", "frames", "-o", "again", model=None)
    first, second = media.read_media("frames"), media.read_media("again")
    assert np.array_equal(first.frames, second.frames)
    assert first.settings == second.settings == media.read_settings("one.mp4")
    assert first.settings["settings"]["attention_args"] == {"size": "1x3x3"}


def test_flags_win_over_from_and_config(cli):
    cli("a blue square", "--seed", 11, "-o", "one.mp4")
    Path("c.yaml").write_text("steps: 1\nseed: 3\nfps: 12\n")
    code, out, _ = cli("--from", "one.mp4", "--config", "c.yaml", "--seed", 5, "-o", "x.gif", "--json", model=None)
    used = json.loads(out)["outputs"][0]["settings"]
    assert code == 0
    assert (used["prompt"], used["steps"], used["fps"], used["seed"]) == ("a blue square", 1, "12", 5)


def test_a_changed_model_is_told_when_repeating(cli, tiny_wan, tmp_path):
    copy = shutil.copytree(tiny_wan, tmp_path / "copy")
    cli("a red circle", "--seed", 1, "-o", "one.gif", model=copy)
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    code, _, errors = cli("--from", "one.gif", "-o", "two.gif", model=None)
    assert code == 0
    assert len(errors) == 1 and "may differ from the original: model_fingerprint" in errors[0]


def test_batches(cli):
    Path("p.txt").write_text("a red circle\na blue square\n")
    code, out, _ = cli("--prompt-file", "p.txt", "--num-videos", 2, "--seed", 4, "-o", "b.gif", "--json")
    results = json.loads(out)["outputs"]
    assert code == 0
    assert [entry["file"] for entry in results] == [f"b-000{index}.gif" for index in range(4)]
    assert [(e["settings"]["prompt"], e["settings"]["seed"]) for e in results] == [
        ("a red circle", 4), ("a red circle", 5), ("a blue square", 4), ("a blue square", 5)
    ]  # fmt: skip
    cli("--from", "b-0003.gif", "-o", "alone.gif", model=None)
    assert Path("alone.gif").read_bytes() == Path("b-0003.gif").read_bytes()


def test_an_empty_prompt_is_unconditional(cli):
    code, out, errors = cli("", "--seed", 1)
    assert (code, errors) == (0, [])
    assert files() == ["clip-1.mp4", "clip-1.mp4.json"]


def test_one_frame_is_a_png_by_itself(cli):
    code, _, _ = cli("a red circle", "--num-frames", 1, "--seed", 1)
    assert code == 0
    assert media.read_media("a-red-circle-1.png").frames.shape == (1, 32, 48, 3)


def test_enlarged_files_repeat_too(cli):
    code, out, _ = cli("a red circle", "--seed", 7, "-o", "big.gif", "--enlarge", 3, "--json")
    assert code == 0
    assert media.read_media("big.gif").frames.shape == (5, 96, 144, 3)
    assert json.loads(out)["outputs"][0]["height"] == 32
    cli("--from", "big.gif", "-o", "again.gif", model=None)
    assert Path("big.gif").read_bytes() == Path("again.gif").read_bytes()
    assert cli("a", "--enlarge", 99)[0] == 2


def test_a_second_pass_at_twice_the_size(cli):
    given = ("--seed", 7, "--steps", 4, "--upscale", 2, "--attention", "sliding_window")
    code, out, _ = cli("a red circle", *given, "-o", "large.gif", "--json")
    entry = json.loads(out)["outputs"][0]
    assert code == 0 and media.read_media("large.gif").frames.shape == (5, 64, 96, 3)
    assert (entry["height"], entry["settings"]["height"], entry["settings"]["upscale"]) == (64, 32, 2.0)
    assert entry["settings"]["attention_args"] == {"base": "2x3", "dual": "true"} and entry["attention"]["ran"] > 0
    assert cli("--from", "large.gif", "-o", "again.gif", model=None)[0] == 0
    assert Path("large.gif").read_bytes() == Path("again.gif").read_bytes()


def test_dry_run_writes_nothing(cli):
    code, out, _ = cli("a red circle", "--dry-run", "--json", "--seed", 1)
    assert code == 0
    assert json.loads(out)["outputs"][0]["settings"]["num_frames"] == 5
    assert files() == []


@pytest.mark.parametrize("mode", [["--dry-run"], ["--explain"], []], ids=["dry run", "explained", "made"])
def test_the_json_of_every_run_holds_the_notes_and_warnings_that_are_printed(cli, mode):
    """A note of the request, a warning of the prompt, one of the record that is repeated and one of its versions."""
    assert cli("a red circle", "--seed", 1, "-o", "first.gif")[0] == 0
    record = json.loads(Path("first.gif.json").read_text())
    record["settings"]["output"], record["made_with"]["torch"] = "elsewhere.gif", "0"
    Path("first.gif.json").write_text(json.dumps(record))
    given = ["--from", "first.gif.json", "--instruction", "red " * 4000, "--truncate-prompt"]
    code, text, printed = cli(*given, *mode, "-o", "a.gif")
    assert code == 0
    code, out, errors = cli(*given, *mode, "-o", "b.gif", "--json")
    told = json.loads(out)
    assert code == 0 and errors == printed
    assert [f"genkit: note: {line}" for line in told["notes"]] == [line for line in printed if ": note: " in line]
    warnings = [line for line in printed if line.startswith("genkit: warning: ")]
    assert [f"genkit: warning: {line}" for line in told["warnings"]] == warnings
    wanted = ["says where to write", "the model reads 16; the end was dropped", *([] if mode else ["torch"])]
    assert len(warnings) == len(wanted) and all(part in line for part, line in zip(wanted, warnings, strict=True))
    assert len(told["notes"]) == 1 and "--instruction was read by the rules" in told["notes"][0]


def test_truncation_is_asked_for_and_told(cli):
    code, _, errors = cli("red " * 10_000, "--truncate-prompt", "--seed", 1, "-o", "x.gif")
    assert code == 0
    assert errors == ["genkit: warning: the prompt has 10001 tokens, the model reads 16; the end was dropped "
                      "(--truncate-prompt)"]  # fmt: skip


BAD = [
    (["a", "--stepz", "3"], 2, "No such option"),
    (["a", "--steps", "three"], 2, "--steps"),
    (["a", "--steps", "0"], 2, "--steps: got 0"),
    (["a", "--steps", "-3"], 2, "--steps: got -3"),
    (["a", "--num-frames", "0"], 2, "--num-frames: got 0"),
    (["a", "--num-frames", "-5"], 2, "--num-frames: got -5"),
    (["a", "--num-frames", "6"], 2, "1 plus a multiple of 4"),
    (["a", "--height", "33"], 2, "multiples of 16"),
    (["a", "--width", "0"], 2, "--width: got 0"),
    (["a", "--fps", "0"], 2, "--fps"),
    (["a", "--seed", "-1"], 2, "--seed"),
    (["a", "b"], 2, "(b); a prompt of several words needs quotes"),
    (["a", "genkit", "models"], 2, "(genkit models); these are two commands"),
    (["a", "--prompt", "b"], 2, "given twice"),
    ([], 2, "no prompt"),
    (["a", "--prompt-file", "p.txt"], 2, "not both"),
    (["--prompt-file", "none.txt"], 1, "cannot read prompt file"),
    (["red " * 10_000], 2, "10001 tokens, the model reads 16"),
    (["a", "--attention", "radiall"], 2, "did you mean 'radial'"),
    (["a", "--attention", "radial", "--attention-args", "blok=3"], 2, "block_size"),
    (["a", "--attention", "radial", "--attention-args", "block_size"], 2, "key=value"),
    (["a", "--attention", "radial", "--schedule", "steps=3:"], 2, "there are 2 steps"),
    (["a", "--attention", "radial", "--schedule", "layers=9:"], 2, "there are 2 layers"),
    (["a", "--attention", "radial", "--schedule", "stepz=1:"], 2, "--schedule"),
    (["a", "--attention", "radial", "--backend", "magic"], 2, "backend"),
    (["a", "--schedule", "steps=1:"], 2, "needs --attention"),
    (["a", "--recipe", "nothing"], 2, "recipe"),
    (["a", "--upscale", "0.5"], 2, "--upscale"),
    (["a", "--upscale", "1.1", "--steps", "4"], 2, "makes the height 35, allowed: multiples of 16"),
    (["a", "--upscale", "2", "--upscale-strength", "0.1"], 2, "leaves no step"),
    (["a", "--upscale-shift", "3"], 2, "--upscale-shift needs --upscale"),
    (["a", "--dtype", "float8"], 2, "--dtype"),
    (["a", "--dtype", "fp16"], 1, "float16 needs a GPU"),
    (["a", "--device", "tpu9"], 2, "device"),
    (["a", "--offload", "model"], 1, "keeps weights in main memory until a GPU needs them"),
    (["a", "--lora", "none.safetensors"], 1, "does not exist"),
    (["a", "-o", "clip.avi"], 2, "allowed: *.mp4"),
    (["a", "-o", ""], 2, "allowed: *.mp4"),
    (["a", "-o", "."], 2, "allowed: *.mp4"),
    (["a", "-o", "x" * 300 + ".mp4"], 1, "File name too long"),
    (["a", "-o", "clip.png"], 2, "one image"),
    (["a", "-o", "there.mp4"], 2, "there.mp4 exists; use --force"),
    (["a", "-o", "there.mp4/clip.mp4"], 1, "cannot write into"),
    (["a", "-o", "/proc/clip.mp4"], 1, "cannot write into"),
    (["a", "--config", "none.yaml"], 1, "cannot read none.yaml"),
    (["a", "--config", "bad.yaml"], 2, "did you mean 'steps'"),
    (["--from", "none.mp4"], 1, "does not exist"),
    (["--from", "there.mp4"], 1, "cannot read"),
]


@pytest.mark.parametrize("arguments, code, text", BAD, ids=[" ".join(bad[0])[:40] or "nothing" for bad in BAD])
def test_bad_input_gets_one_line_and_writes_nothing(cli, arguments, code, text):
    Path("there.mp4").write_bytes(b"mine")
    Path("bad.yaml").write_text("stepz: 3\n")
    before = files()
    got, out, errors = cli(*arguments)
    assert got == code
    assert out == ""
    assert len(errors) == 1 and errors[0].startswith("genkit: error: ") and text in errors[0]
    assert files() == before
    assert Path("there.mp4").read_bytes() == b"mine"


MODELS = [
    ("nonsense", 2, "model: got 'nonsense', allowed:"),
    ("./none", 1, "model folder ./none does not exist"),
    ("no-index", 1, "model_index.json"),
    ("no-part", 1, "no part 'vae'"),
    ("truncated", 1, "diffusion_pytorch_model.safetensors is truncated"),
    ("corrupt", 1, "diffusion_pytorch_model.safetensors is no readable safetensors file"),
    ("nan", 1, "NaN or infinite pixels"),
]


@pytest.mark.parametrize("name, code, text", MODELS, ids=[model[0] for model in MODELS])
def test_bad_models_get_one_line_and_write_nothing(cli, tiny_wan, tmp_path, name, code, text):
    model = name
    if name not in ("nonsense", "./none"):
        model = shutil.copytree(tiny_wan, tmp_path / name)
        weights = model / WEIGHTS
        if name == "no-index":
            (model / "model_index.json").unlink()
        elif name == "no-part":
            shutil.rmtree(model / "vae")
        elif name == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif name == "corrupt":
            weights.write_bytes(b"\0" * 50 + weights.read_bytes()[50:])
        else:
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            tensors["proj_out.bias"].fill_(float("inf"))
            save_file(tensors, weights, metadata={"format": "pt"})
    got, out, errors = cli("a", "-o", "clip.mp4", model=model)
    assert (got, out) == (code, "")
    assert len(errors) == 1 and text in errors[0]
    assert files() == []


def test_errors_are_json_too(cli):
    code, out, errors = cli("a", "--steps", "0", "--json")
    assert json.loads(out) == {"error": errors[0].removeprefix("genkit: error: "), "exit_code": code}
    assert code == 2


def test_force_replaces(cli):
    Path("clip.gif").write_bytes(b"old")
    code, _, _ = cli("a", "--seed", 1, "-o", "clip.gif", "--force")
    assert code == 0
    assert media.read_media("clip.gif").frames.shape[0] == 5


def test_unexpected_errors_are_one_line_with_a_way_to_more(cli, monkeypatch):
    from genkit.pipelines import session

    def broken(*args, **kwargs):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(session.Session, "run", broken)
    code, _, errors = cli("a", "-o", "x.gif")
    assert code == 1
    assert errors == ["genkit: error: unexpected ZeroDivisionError: surprise; run with --debug for the traceback"]
    code, _, errors = cli("a", "-o", "x.gif", "--debug")
    assert code == 1
    assert "Traceback (most recent call last):" in errors[0]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def test_loading_is_said_before_anything_heavy_is_imported(tmp_path, tiny_wan):
    command = [sys.executable, "-X", "importtime", "-m", "genkit", "generate", "a", "--steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=300)
    lines = done.stderr.splitlines()
    said = lines.index("genkit: loading toy-video ...")
    before = {line.rpartition("|")[2].strip() for line in lines[:said]}
    assert not before & {"torch", "diffusers", "transformers", "numpy", "av", "PIL"}
    assert "--steps: got 0" in lines[-1]


def heed_interrupts():
    """A shell that starts the tests in the background makes its children deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def genkit(*arguments, cwd, **extra):
    command = [sys.executable, "-m", "genkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(**extra), timeout=300)


def test_a_hub_id_without_network_is_one_line(tmp_path):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    done = genkit("generate", "a", "--model", "owner/name", cwd=tmp_path, **away)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    assert "cannot get owner/name from the Hugging Face hub: the hub cannot be reached" in done.stderr


def test_ctrl_c_in_the_middle_ends_with_130_and_no_file(tmp_path, tiny_wan):
    command = [sys.executable, "-m", "genkit", "generate", "a", "--model", str(tiny_wan), "--steps", "100000"]
    running = subprocess.Popen(
        [*command, "-o", "clip.mp4"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        assert running.stderr.readline().startswith("genkit: loading ")
        assert running.stderr.readline().startswith("genkit: output 1/1: step 1/100000")
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert (out, errors) == ("", "genkit: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_writing_leave_nothing(cli, monkeypatch, number, code):
    from genkit.media import files as media_files

    def interrupted(path, *args, **kwargs):
        Path(path).write_bytes(b"half a file")
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(media_files, "write_mp4", interrupted)
    before = signal.getsignal(signal.SIGINT)
    heed_interrupts()
    try:
        got, out, errors = cli("a", "-o", "clip.mp4")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (got, out, errors) == (code, "", ["genkit: error: interrupted"])
    assert files() == []


FULL_DISK = """
import resource, sys
from genkit.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_at_the_end_is_one_line_and_no_file(tmp_path, tiny_wan):
    arguments = ["generate", "a", "--model", str(tiny_wan), "--seed", "1", "-o", "clip.mp4"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment(),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "could not write clip.mp4" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
