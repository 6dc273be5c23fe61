"""``genkit generate --stream``: files that play, pipes whose reader may go, following prompts, what is refused."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import av
import numpy as np
import pytest

from genkit.cli.main import main
from genkit.media import read_mp4, read_settings

ARGS = "recent=2,trained=4,context=frames"
STREAM = ["--stream", "--stream-args", ARGS, "--steps", "1", "--seed", "3"]


@pytest.fixture
def generate(tiny_wan, capsys):
    def call(*arguments, prompt="a red circle"):
        code = main(["generate", prompt, "--model", str(tiny_wan), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize("frames", [1, 13, 14, 30])
def test_a_file_has_as_many_frames_as_were_asked_for_and_its_settings(generate, tmp_path, frames):
    path = tmp_path / "a.mp4"
    code, out, err = generate(*STREAM, "--num-frames", str(frames), "-o", str(path), "--json")
    assert code == 0, err
    told = json.loads(out)["outputs"][0]
    found, rate, *_ = read_mp4(path)
    assert len(found) == frames == told["frames"] and rate == 8
    settings = read_settings(path)["settings"]
    assert settings["stream"] and settings["num_frames"] == frames and settings["stream_args"]["recent"] == "2"
    assert json.loads((tmp_path / "a.mp4.json").read_text())["notes"]["frames"] == frames
    assert generate("--from", str(path), "-o", str(tmp_path / "b.mp4"))[0] == 0
    assert np.array_equal(read_mp4(tmp_path / "b.mp4")[0], found)


def test_a_prompt_that_follows_is_in_force_from_its_frame_on(generate, tmp_path):
    paths = [tmp_path / f"{n}.mp4" for n in range(3)]
    more = ([], ["--prompt", "a blue square", "--at", "14"], ["--then", "a blue square", "--at", "20"])
    for path, extra in zip(paths, more, strict=True):
        assert generate(*STREAM, "--num-frames", "29", "-o", str(path), *extra)[0] == 0
    plain, one, other = (read_mp4(path)[0] for path in paths)
    assert np.array_equal(plain[:20], one[:20]) and np.array_equal(one, other)  # chunks begin at 13, 21, ...
    assert not np.array_equal(plain[21:], one[21:])
    assert read_settings(paths[1])["settings"]["then"] == ["a blue square"]


def played(data: bytes) -> int:
    """Frames that a player shows of a file that is torn off, maybe in the middle of one."""
    count = 0
    with suppress(av.error.InvalidDataError), av.open(io.BytesIO(data)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def heed_interrupts():
    """A shell that starts the tests in the background makes its children deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(tiny_wan, tmp_path, output, **more):
    command = [
        sys.executable,
        "-m",
        "genkit",
        "generate",
        "a red circle",
        "--model",
        str(tiny_wan),
        *STREAM,
        "-o",
        output,
    ]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, **more,
        preexec_fn=heed_interrupts,
    )  # fmt: skip


def test_a_reader_that_goes_ends_the_run_in_one_line(tiny_wan, tmp_path):
    run = started(tiny_wan, tmp_path, "-")
    data = run.stdout.read(40_000)  # a stream without an end
    run.stdout.close()
    errors = run.stderr.read().decode()
    assert run.wait() == 1
    assert "genkit: error: the program that reads standard output has ended" in errors and "Traceback" not in errors
    assert played(data) > 5


def test_a_stream_that_is_stopped_leaves_a_file_that_plays(tiny_wan, tmp_path):
    run = started(tiny_wan, tmp_path, "a.mp4")
    for line in run.stderr:
        if b"first 13 frames" in line:
            break
    run.send_signal(2)
    assert run.wait() == 130
    assert len(read_mp4(tmp_path / "a.mp4")[0]) >= 12
    assert read_settings(tmp_path / "a.mp4")["settings"]["stream"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "5"], "--at needs --stream"),
        (["--then", "b", "--at", "5"], "--then needs --stream"),
        (["--stream-args", "chunk=2"], "--stream-args needs --stream"),
        (["--prompt", "b"], "given twice"),
        ([*STREAM, "--prompt", "b"], "got 0 frames for 1 prompt that follows the first"),
        ([*STREAM, "--at", "5"], "got 1 frame for 0 prompts"),
        ([*STREAM, "--then", "b", "--at", "0"], "rising order, above 0"),
        ([*STREAM, "--then", "b", "--then", "c", "--at", "9", "--at", "9"], "rising order"),
        ([*STREAM, "--then", "b", "--at", "x"], "--at: got 'x'"),
        ([*STREAM, "--then", "b", "--at", "-4"], "--at: got '-4'"),
        (["--stream", "--stream-args", "size=3"], "--stream-args: got 'size'"),
        (["--stream", "--stream-args", "chunk=many"], "--stream-args chunk: got 'many'"),
        (["--stream", "--stream-args", "renoise=maybe"], "true or false"),
        (["--stream", "--stream-args", "context=past"], "context of a stream: got 'past'"),
        (["--stream"], "do not tell whether they are causal"),
        (["--stream", "--stream-args", "context=cache", "--attention", "radial"], "same layers"),
        (["--stream", "--stream-args", f"{ARGS},keep=0.5"], "keep belongs to context=cache"),
        (["--stream", "--stream-args", "context=cache,trained=4,chunk=3,sink=2"], "longer than the 4"),
        ([*STREAM, "-o", "a.gif"], "a file ending in .mp4, or - for a pipe"),
        ([*STREAM, "-o", "-", "--json"], "both want standard output"),
        ([*STREAM, "--num-videos", "2"], "--stream and --num-videos exclude"),
        ([*STREAM, "--upscale", "2"], "exclude"),
        ([*STREAM, "--height", "33"], "33"),
        ([*STREAM, "--then", "b", "--at", "5"], "no chunk of a video of 5 frames .* begins at 0"),
        ([*STREAM, "--then", "b", "--at", "22", "--num-frames", "29"], "no chunk .* begins at 21"),
        (
            [*STREAM, "--then", "b", "--then", "c", "--at", "14", "--at", "15", "--num-frames", "29"],
            "begins at 21, with",
        ),
        ([*STREAM, "--prompt", "a (blue:1.3) square", "--at", "9"], "weights in prompts"),
    ],
)
def test_what_is_refused(generate, tmp_path, monkeypatch, arguments, said):
    import re

    monkeypatch.chdir(tmp_path)
    code, _, err = generate("--num-frames", "5", *arguments)
    assert code == 2 and re.search(said, err), err
    assert len([line for line in err.splitlines() if "error:" in line]) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [0, -1])
def test_a_full_disk_is_told_of_the_video_and_leaves_what_plays(generate, tmp_path, room):
    """A limit on the size of files stands for the disk: 0 bytes, or one less than the video has."""
    import resource

    path = tmp_path / "a.mp4"
    if room < 0:
        assert generate(*STREAM, "--num-frames", "29", "-o", str(path))[0] == 0
        room += path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        code, _, err = generate(*STREAM, "--num-frames", "29", "-o", str(path), "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = [line for line in err.splitlines() if "error:" in line]
    assert code == 1 and len(lines) == 1 and f"could not write {path}: File too large" in lines[0], err
    assert ("plays up to there" in lines[0]) == path.exists() == bool(room)
    if room:
        assert 0 < len(read_mp4(path)[0]) <= 29
    else:
        assert not list(tmp_path.iterdir())


def test_other_models_and_files_that_exist(tiny_sd, generate, tmp_path, capsys):
    code = main(["generate", "a", "--model", str(tiny_sd), "--stream"])
    assert code == 1 and "cannot be streamed; pipelines that can" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_bytes(b"mine")
    code, _, err = generate(*STREAM, "-o", str(tmp_path / "a.mp4"))
    assert code == 2 and "exists; use --force" in err and (tmp_path / "a.mp4").read_bytes() == b"mine"


@pytest.fixture(scope="module")
def helios_folder(tmp_path_factory):
    from tiny_helios import build_tiny_helios

    folder = tmp_path_factory.mktemp("helios")
    build_tiny_helios().save_pretrained(folder)
    return folder


def test_a_pipeline_that_goes_on_by_itself_is_streamed_in_its_own_way(helios_folder, tmp_path, capsys):
    path, size = tmp_path / "a.mp4", ["--height", "64", "--width", "64", "--max-sequence-length", "8"]
    command = ["generate", "a red circle", "--model", str(helios_folder), "--stream", *size, "-o", str(path)]
    command += ["--steps", "1", "--guidance-scale", "1", "--seed", "3"]
    travel = ["--prompt", "a blue square", "--at", "20", "--num-frames", "36"]
    assert main([*command, *travel]) == 0, capsys.readouterr().err
    assert len(read_mp4(path)[0]) == 36
    for wrong, words in (
        (["--stream-args", "keep=0.5"], "--stream-args keep: HeliosPipeline goes on in its own way"),
        (["--stream-args", "chunk=3"], "9 latent frames at once after the latest 19"),
        (["--prompt", "a blue square", "--at", "40", "--num-frames", "60"], "the last chunk begins at 33"),
    ):
        capsys.readouterr()
        assert main([*command, "--force", *wrong]) == 2
        assert words in capsys.readouterr().err
