"""Files that look trustworthy and hold anything: exit 1 or 2, one clear line, at once; records lead nowhere else."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from genkit.cli.main import main

NEST = "[" * 100_000 + "]" * 100_000
TEXTS = {
    "null": "null", "a number": "5", "a list": "[1]", "a text": '"x"', "deep": NEST, "cut": '{"a": {"b": [1, ',
    "no text": "\xff\xfe\x00", "not a number": "NaN", "empty": "", "many digits": '{"settings": ' + "9" * 5000 + "}",
}  # fmt: skip
FILES = (
    "genkit.json", "model_index.json", "transformer/config.json", "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json", "SHA256SUMS", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip
VALUES = [None, 5, [1], "x", {"a": 1}, float("nan"), float("inf"), -1, 10**300, "\x1b[31m", True, "9" * 5000]


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command that must fail in one line; returns the line."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments, ok=(1, 2)):
        began = time.process_time()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code in ok, (arguments, captured)
        assert time.process_time() - began < 5
        lines = [line for line in captured.err.splitlines() if not line.startswith("genkit: loading")]
        assert "unexpected" not in captured.err and "Traceback" not in captured.err, captured.err
        assert all(line.isprintable() and len(line) < 3300 for line in captured.err.splitlines())
        assert code == 0 or (captured.out == "" and lines[-1].startswith("genkit: error: ")), lines
        assert [path.name for path in Path().iterdir() if path.suffix in (".mp4", ".png")] == []
        return lines[-1] if lines else ""

    return run


@pytest.mark.parametrize("text", TEXTS)
def test_files_of_a_model_with_any_content(refused, tiny_wan, tmp_path, text):
    copy = shutil.copytree(tiny_wan, tmp_path / "model")
    for name in FILES:
        path = copy / name
        before = path.read_bytes() if path.exists() else None
        path.write_text(TEXTS[text], encoding="latin-1")
        told = refused("models", copy, ok=(0,) if name == "SHA256SUMS" and not TEXTS[text] else (1, 2))
        assert Path(name).name in told or not told
        path.unlink() if before is None else path.write_bytes(before)
    assert main(["models", str(copy)]) == 0


def test_values_of_a_models_file_of_any_kind(refused, tiny_wan, tmp_path):
    copy = shutil.copytree(tiny_wan, tmp_path / "model")
    for name, keys in (
        (
            "genkit.json",
            ["defaults", "limits", "call", "description", "defaults.steps", "limits.multiple", "call.prompt"],
        ),
        ("model_index.json", ["_class_name", "transformer", "../x"]),
    ):
        before = (copy / name).read_text()
        for key in keys:
            for value in VALUES:
                content = json.loads(before)
                place = content
                *outer, last = key.split(".") if key != "../x" else [key]
                for step in outer:
                    place = place.setdefault(step, {})
                if place.get(last) == value or key == "call" and isinstance(value, dict):
                    continue
                place[last] = value
                (copy / name).write_text(json.dumps(content))
                refused("models", copy, ok=(0, 1))
        (copy / name).write_text(before)


@pytest.mark.parametrize(
    "call",
    [{"height": "x"}, {"attention_kwargs": 3}, {"num_videos_per_prompt": [1]}, {"prompt_embeds": [1.0]}, {"wrong": 1}],
)
def test_arguments_of_a_models_call_that_the_pipeline_cannot_take(refused, tiny_wan, tmp_path, call):
    copy = shutil.copytree(tiny_wan, tmp_path / "model")
    (copy / "genkit.json").write_text(json.dumps({"call": call}))
    assert f"genkit.json, call.{next(iter(call))}: got " in refused("generate", "a", "-m", copy, "--dry-run", ok=(1,))


def record(**changes):
    return {
        "genkit": "0.1.0",
        "command": "generate",
        "settings": {"prompt": "a", "steps": 2, **changes},
        "made_with": {},
    }


def test_records_with_any_content(refused, tiny_wan):
    for text in TEXTS.values():
        Path("r.json").write_text(text, encoding="latin-1")
        refused("generate", "--from", "r.json", "--dry-run", "--model", tiny_wan)
    for key in ("settings", "made_with", "command"):
        for value in VALUES:
            if (key == "command" and value == "generate") or (key == "made_with" and isinstance(value, dict)):
                continue
            Path("r.json").write_text(json.dumps({**record(), key: value}))
            refused("generate", "--from", "r.json", "--dry-run", "--model", tiny_wan)


@pytest.mark.parametrize("key", ["steps", "prompt", "lora", "attention_args", "fps", "seed", "model", "schedule"])
def test_settings_of_a_record_of_any_kind(refused, tiny_wan, key):
    for value in VALUES:
        Path("r.json").write_text(json.dumps(record(**{"model": str(tiny_wan), key: value})))
        refused("generate", "--from", "r.json", "--dry-run", ok=(0, 1, 2))


def test_a_record_does_not_say_where_to_write(refused, tiny_wan):
    Path("r.json").write_text(json.dumps(record(output="../../x.png", model=str(tiny_wan))))
    told = refused("generate", "--from", "r.json", "--dry-run", ok=(0,))
    assert "says where to write, which is not followed" in told


@pytest.mark.parametrize(
    "changes",
    [{"lora": ["../l.safetensors"]}, {"lora": ["l.safetensors"]}, {"audio": "/a/../b.wav"}, {"reference": ["x.png"]},
     {"recipe": "../r.yaml"}, {"attention": "reference", "attention_args": {"weights": "../../w.safetensors"}}],
)  # fmt: skip
def test_a_record_names_files_as_genkit_does_or_not_at_all(refused, tiny_wan, changes):
    Path("r.json").write_text(json.dumps(record(model=str(tiny_wan), **changes)))
    told = refused("generate", "--from", "r.json", "--dry-run", ok=(2,))
    assert "names a file by a path that genkit does not store" in told


def test_a_model_of_the_hub_is_asked_for(refused, tiny_wan):
    Path("r.json").write_text(json.dumps(record(model="owner/name")))
    told = refused("generate", "--from", "r.json", "--dry-run", ok=(2,))
    assert "add --model owner/name if you trust it" in told
    assert refused("generate", "--from", "r.json", "--dry-run", "--model", tiny_wan, ok=(0,)) == ""


@pytest.mark.parametrize("text", TEXTS)
def test_configuration_and_prompt_files_with_any_content(refused, tiny_wan, text):
    for flag, name in (("--config", "c.yaml"), ("--config", "c.json"), ("--recipe", "r.yaml")):
        Path(name).write_text(TEXTS[text], encoding="latin-1")
        refused("generate", "a", "--dry-run", "--model", tiny_wan, flag, name, ok=(0, 1, 2))


def test_special_files_in_place_of_any_file(refused, tiny_wan):
    for flag in ("--config", "--prompt-file", "--from", "--lora", "--recipe", "--reference", "--audio", "--video"):
        for name in ("/dev/zero", ".", "/nonexistent/x", "x" * 400):
            refused("generate", "a", "--dry-run", "--model", tiny_wan, flag, name, *(
                ("--attention", "reference") if flag == "--reference" else ()))  # fmt: skip


def test_a_prompt_file_with_a_byte_order_mark_gives_the_same_prompts(tmp_path):
    from genkit.pipelines.prompts import read_prompt_file

    for mark, encoding in (("", "utf-8"), ("\ufeff", "utf-8"), ("\ufeff", "utf-16-le")):
        (tmp_path / "p.txt").write_bytes(f"{mark}a red circle\r\n\r\nein Kreis é\n".encode(encoding))
        assert read_prompt_file(tmp_path / "p.txt") == ["a red circle", "ein Kreis é"]
