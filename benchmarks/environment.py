"""The machine and versions a number was measured with, and writing of result files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from genkit.pipelines.processor import processor_name

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, object]:
    """Processor, threads, GPU and the versions that matter."""
    import torch

    versions = {}
    for name in ("torch", "diffusers", "transformers", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return run.stdout.strip() or None


def machine_line(facts: dict) -> str:
    """One line for the head of a Markdown report."""
    device = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return f"Measured on {device}; Python {facts['python']}, {versions}; commit {facts['commit']}."


def write_results(name: str, data: dict, markdown: str, folder: Path = RESULTS) -> tuple[Path, Path]:
    """Write ``name.json`` and ``name.md`` whole or not at all."""
    from genkit.media.atomic import Files

    paths = folder / f"{name}.json", folder / f"{name}.md"
    with Files() as files:
        for path, text in zip(paths, (json.dumps(data, indent=2) + "\n", markdown), strict=True):
            files.new(path).write_text(text, encoding="utf-8")
    return paths


def report(name: str, data: dict, markdown: str, folder: Path = RESULTS) -> None:
    """Write the results, print the report and where it lies."""
    paths = write_results(name, data, markdown, folder)
    print(markdown)
    print(f"written: {', '.join(str(path) for path in paths)}")


def table(rows: list[dict[str, object]]) -> str:
    """A Markdown table; a dash where a row lacks what another has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "-")) for name in names) + " |" for row in rows]
    return "\n".join(lines)
