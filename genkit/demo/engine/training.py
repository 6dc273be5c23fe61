"""Training a LoRA for a visitor: a process of its own, whose log is read and which is stopped as Ctrl-C would."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genkit.demo.engine.desk import Worker
from genkit.demo.engine.job import LOADING, STEPS, Job
from genkit.demo.engine.messages import for_visitor
from genkit.demo.engine.pictures import CLIPS, check_upload, read
from genkit.demo.engine.visitors import Visitor
from genkit.errors import ArtifactError, UsageError, counted, explain
from genkit.pipelines.following import Interrupted

#: Files of one training.
MOST_FILES = 200
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION = ".txt"
RESULT = "pytorch_lora_weights.safetensors"
#: Seconds between two looks at the log, and until a process that was asked to stop is ended.
_LOOK, _PATIENCE = 0.5, 30.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}")


def check_name(name: Any) -> str:
    """The name of a LoRA, which the chooser shows."""
    text = name.strip() if isinstance(name, str) else ""
    if not _NAME.fullmatch(text):
        raise UsageError(explain("name", name, "1 to 40 letters, digits, spaces, dashes and underscores"))
    return text


def gather(visitor: Visitor, files: Sequence[tuple[Path, str]], roots: Sequence[Path]) -> Path:
    """Copies of uploads in a new folder of the visitor, captions beside their pictures.

    Args:
        visitor: whose they are.
        files: where each lies, and its name with the visitor.
        roots: folders that uploads lie in.

    Raises:
        UsageError: no picture or clip, too many files, another kind of file.
        ArtifactError: a picture that cannot be read or is too large.
    """
    if len(files) > MOST_FILES:
        raise UsageError(f"{counted(len(files), 'file is', 'files are')} too many; train on at most {MOST_FILES}")
    folder = visitor.new_file("") / "data"
    folder.mkdir(parents=True)
    media = 0
    for path, name in files:
        found, suffix = Path(path).resolve(), Path(name).suffix.lower()
        if not any(found.is_relative_to(root.resolve()) for root in roots):
            raise UsageError("only files that you upload here are trained on")
        if suffix not in (*PICTURES, *CLIPS, CAPTION):
            raise UsageError(explain("file", name, (*PICTURES, *CLIPS, CAPTION)))
        check_upload(found, name)
        if suffix in PICTURES:
            read(found, name)
        media += suffix != CAPTION
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(name).stem)[:80] or "file"
        shutil.copyfile(found, folder / f"{stem}{suffix}")
    if not media:
        raise UsageError("give pictures or clips to train on; a text file of the same name is a picture's caption")
    return folder


def train(job: Job, visitor: Visitor, worker: Worker, name: str, settings: Mapping[str, Any]) -> None:
    """Train as settings of ``genkit train lora`` say; the result is the visitor's under its name.

    Args:
        job: told how far it is.
        visitor: gets the LoRA.
        worker: of the device, which does nothing else meanwhile and frees its model first.
        name: of the LoRA.
        settings: with ``data``, ``output`` and ``max_train_steps``.

    Raises:
        ArtifactError: the training failed, with its last message. Interrupted: it was stopped.
    """
    worker.wait(job)
    try:
        worker.free()
        job.tell(phase=LOADING)
        output = Path(settings["output"])
        config = output.with_suffix(".json")
        config.write_text(json.dumps(dict(settings)), encoding="utf-8")
        command = [sys.executable, "-m", "genkit", "train", "lora", "--config", str(config), "--json"]
        with open(config.with_suffix(".err"), "w+b") as errors:
            # A group of its own: the server's Ctrl-C is not the training's.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            try:
                _follow(job, process, output / "log.jsonl", int(settings["max_train_steps"]))
            finally:
                _end(process)
            if job.stopping():
                raise Interrupted("the training was stopped")
            if process.returncode:
                errors.seek(0)
                raise ArtifactError(_reason(errors.read().decode("utf-8", "replace")))
        visitor.loras[name] = output / RESULT
        job.tell(made=(output / RESULT,), notes=(f"“{name}” can be chosen as a LoRA in the other tabs",))
    finally:
        worker.lock.release()


def losses(log: Path) -> list[tuple[int, float]]:
    """Steps and smoothed losses of a training's log, as far as it is written."""
    if not log.is_file():
        return []
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith("}"):  # the last line may be half written
            row = json.loads(line)
            if isinstance(row.get("loss"), float):
                rows.append((int(row["step"]), row["loss"]))
    return rows


def _follow(job: Job, process: subprocess.Popen, log: Path, steps: int) -> None:
    begun, first = time.monotonic(), 0
    asked = 0.0
    while process.poll() is None:
        if job.stopping():
            if not asked:
                process.send_signal(signal.SIGINT)
                asked = time.monotonic()
            elif time.monotonic() - asked > _PATIENCE:
                return
        rows = losses(log)
        if rows and not asked:
            step = rows[-1][0]
            if not first:
                begun, first = time.monotonic(), step
            share = min(step / steps, 1.0)
            speed = (time.monotonic() - begun) / max(step - first, 1)
            left = speed * (steps - step) if step > first else None
            job.tell(phase=STEPS, step=step, steps=steps, share=share, left=left, preview=None)
        time.sleep(_LOOK)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _reason(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("genkit: error:")]
    last = lines[-1].removeprefix("genkit: error:").strip() if lines else "it ended without a message"
    return for_visitor(f"the training failed: {last}")
