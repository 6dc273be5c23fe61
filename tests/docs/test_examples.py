"""What the pages tell a reader to type works: Python examples are run, `genkit ...` lines are run at small sizes, and
lines that need a model of the hub, a GPU or hours of training are parsed by the parser they are meant for."""

from __future__ import annotations

import json
import re
import runpy
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages as reader  # noqa: E402

from genkit import media  # noqa: E402
from genkit.cli.main import app, main  # noqa: E402

SMALL = {"steps": "6", "height": "64", "width": "64", "num_frames": "9"}
SHELL = ("", "sh", "bash", "shell")
LAUNCHERS = (["python"], ["accelerate", "launch"], ["python", "-m", "torch.distributed.run"])


def pages_with(languages) -> list[Path]:
    return [page for page in reader.pages() if any(block.language in languages for block in reader.blocks(page))]


def shell_lines(page: Path) -> list[tuple[str, str | None]]:
    found = [block for block in reader.blocks(page) if block.language in SHELL]
    return [(line, block.parsed_only) for block in found for line in reader.commands(block.text)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the files that examples read."""
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(0, 255, 9 * 64 * 64 * 3).astype(np.uint8).reshape(9, 64, 64, 3)
    for name in ("square.png", "picture.png", "style.png"):
        Image.fromarray(ramp[0]).save(name)
    Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)).save("mask.png")
    for name in ("silent.mp4", "clip.mp4"):
        media.write_mp4(name, ramp, 8)
    for name in ("knocks.wav", "tones.wav"):
        with wave.open(name, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16000)
            sound.writeframes((np.sin(np.arange(16000) / 5) * 9000).astype(np.int16).tobytes())
    Path("prompts.txt").write_text("a red circle moves right\na blue square spins\n")
    Path("settings.yaml").write_text("guidance_scale: 3\n")
    Path("mine.yaml").write_text("description: mine\nparts: [{attention: radial, attention_args: {block_size: 16}}]\n")
    boxes = [{"frame": frame, "box": [0.1, 0.1, 0.6, 0.6]} for frame in (0, 4)]
    Path("track.json").write_text(json.dumps({"units": "shares", "boxes": boxes}))
    return tmp_path


def small(source: str) -> str:
    """A Python example with fewer steps and smaller frames."""
    source = re.sub(r"num_inference_steps=\d+", f"num_inference_steps={SMALL['steps']}", source)
    source = re.sub(r"num_frames=\d+", f"num_frames={SMALL['num_frames']}", source)
    return re.sub(r"\b(height|width)=\d+", lambda found: f"{found.group(1)}=64", source)


@pytest.mark.parametrize("page", pages_with(["python"]), ids=reader.name)
def test_python_examples_run(page, folder, capsys):
    """The blocks of a page in order, in one namespace, as someone pastes them."""
    names: dict = {"__name__": "__main__"}
    for block in reader.blocks(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + small(block.text), str(page), "exec")
            if block.parsed_only is None:
                exec(code, names)


@pytest.mark.parametrize("script", sorted((reader.ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_scripts_run(script, folder, capsys):
    exec(compile(small(script.read_text()), str(script), "exec"), {"__name__": "__main__"})
    assert f"]({script.name})" in (script.parent / "README.md").read_text()


@pytest.mark.parametrize("page", pages_with(["yaml"]), ids=reader.name)
def test_yaml_examples_are_yaml(page):
    for block in reader.blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)


def _made_small(arguments: list[str]) -> list[str]:
    """A `genkit generate` line with fewer steps and smaller frames. A repeat takes what it repeats."""
    if arguments[0] in ("style", "consistent"):
        return [*arguments, "--force", "--steps", SMALL["steps"]]
    if arguments[0] == "tune":  # runs for minutes: tests/cli runs it on a tiny model
        return [*arguments, "--dry-run", "--force"]
    if arguments[0] == "inspect" and "--prompt" in arguments:
        small = [word for name in SMALL for word in (f"--{name.replace('_', '-')}", SMALL[name])]
        return [*arguments, "--force", *small]
    if arguments[0] != "generate" or "--from" in arguments:
        return [*arguments, "--force"] if arguments[0] == "generate" else arguments
    pictures = any(name in arguments for name in ("toy-image", "toy-dit"))
    pictures = pictures or "--num-frames 1 " in " ".join(arguments)
    given = [name for name in SMALL if not (pictures and name == "num_frames")]
    if arguments.count("--prompt") > 1 and "--at" not in arguments:  # a clip of several tiles: small ones
        given.remove("num_frames")
        arguments = [*arguments, "--tile-frames", "5"]
    if "--at" in arguments or "--source-video" in arguments:  # as long as what goes on in them
        given.remove("num_frames")
    return [*arguments, "--force", *(word for name in given for word in (f"--{name.replace('_', '-')}", SMALL[name]))]


def _from_the_hub(arguments: list[str]) -> bool:
    return any("/" in value for flag, value in zip(arguments, arguments[1:], strict=False) if flag == "--model")


def _parse(arguments: list[str]) -> None:
    """Raise unless the command line takes these words: commands, flags and the types of their values."""
    command = typer.main.get_command(app)
    with command.make_context("genkit", list(arguments)) as context:
        name, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        inner = chosen.make_context(name, rest, parent=context)
        if hasattr(chosen, "resolve_command"):  # a group, such as train
            name, chosen, rest = chosen.resolve_command(inner, [*inner._protected_args, *inner.args])
            chosen.make_context(name, rest, parent=inner)


@pytest.mark.parametrize("page", pages_with(SHELL), ids=reader.name)
def test_genkit_lines_run(page, folder, capsys):
    for line, parsed_only in shell_lines(page):
        program, *arguments = reader.words(line)
        if not program.endswith("genkit"):
            continue
        if parsed_only or _from_the_hub(arguments):
            _parse(arguments)
            continue
        code = main(_made_small(arguments))
        assert code == 0, f"{reader.name(page)}: {line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", pages_with(SHELL), ids=reader.name)
def test_every_line_is_one_command(page):
    for line, _ in shell_lines(page):
        words = reader.words(line)
        launched = words[:4] == ["accelerate", "launch", "-m", "genkit"]
        assert "genkit" not in words[4 if launched else 1 :], f"paste fails: {line}"
        assert not {"&&", ";", "|"} & set(words), f"paste fails: {line}"
        assert words[0] in (
            "genkit",
            "make",
            "python",
            "accelerate",
            "git",
            "pip",
            "cd",
            "bash",
            ".ci/run",
            "pre-commit",
            ".venv/bin/genkit",
        ), line


@pytest.mark.parametrize("page", pages_with(SHELL), ids=reader.name)
def test_make_and_script_lines_are_taken_by_their_programs(page, monkeypatch, capsys):
    targets = re.findall(r"^([a-z-]+):", (reader.ROOT / "Makefile").read_text(), flags=re.M)
    for line, _ in shell_lines(page):
        words = reader.words(line)
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word][0] in targets, line
        script = next((word for word in words if re.fullmatch(r"(scripts|examples)/\w+\.py", word)), None)
        if script:
            given = words[words.index(script) + 1 :]
            task = [word for word in given[:1] if not word.startswith("-")]
            help_text = _help([str(reader.ROOT / script), *task], monkeypatch, capsys)
            flags = [word for word in given if word.startswith("--")]
            assert [flag for flag in flags if not re.search(rf"{flag}\b", help_text)] == [], line
        elif words[:2] == ["python", "-m"]:
            monkeypatch.syspath_prepend(str(reader.ROOT))
            assert find_spec(words[2]), line


def _help(program: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [*program, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(program[0], run_name="__main__")
    assert left.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in reader.pages() if reader.inline_commands(page)], ids=reader.name)
def test_commands_in_running_text_are_commands(page):
    """`genkit NAME ...` names a command, with flags that it has. Placeholders (`...`, NAME) stay as they are."""
    commands = typer.main.get_command(app).commands
    for line in reader.inline_commands(page):
        name, *rest = reader.words(line)[1:]
        if name == "COMMAND" or name.startswith("-"):
            continue
        assert name in commands, line
        command = commands[name]
        if hasattr(command, "commands") and rest:  # a group, such as train
            assert rest[0] in command.commands, line
            command = command.commands[rest[0]]
        flags = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "-h"}
        assert {word for word in rest if word.startswith("-")} <= flags, line
