"""The outputs of one command: every prompt with every seed, each under its own name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genkit.errors import UsageError
from genkit.media import check_output, numbered
from genkit.media.formats import check_name, existing
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.record import FILES, file_of
from genkit.pipelines.request import flag
from genkit.pipelines.resolve import Request
from genkit.pipelines.settings import DrawSettings
from genkit.pipelines.text import slug
from genkit.reading.files import place
from genkit.reading.strength import STRENGTH


def expand(request: Request, prompts: list[str]) -> list[tuple[Any, Path]]:
    """All runs of a request with their output names: every prompt with ``num_videos`` seeds, numbered when there are
    several."""
    base, kind = request.settings, request.model.kind
    drawn = isinstance(base, DrawSettings)  # whether outputs differ by their seed
    each = base.num_videos if drawn else 1
    count = len(prompts) * each
    jobs = []
    for index, prompt in enumerate(prompts):
        for offset in range(each):
            changes = {"seed": base.seed + offset, "num_videos": 1} if drawn else {}
            job = base if count == 1 else base.replace(prompt=prompt, **changes)
            still = kind is IMAGE or request.frames == 1
            if base.output is not None:
                output = numbered(base.output, index * each + offset, count, still=still)
            else:
                seed = f"-{job.seed}" if drawn else ""
                output = Path(f"{slug(prompt)}{seed}{'.png' if still else kind.suffix}")
            jobs.append((job, output))
    seen: set[Path] = set()
    for _, output in jobs:
        if output in seen:
            raise UsageError(f"two prompts would write {output}; give --output, its name is then numbered")
        seen.add(output)
    return jobs


def check_outputs(jobs: list[tuple[Any, Path]], *, force: bool) -> None:
    """Refuse a batch before it starts when any of its outputs exists, cannot be written, or is what is worked on."""
    for settings, output in jobs:
        check_name(output)
        _check_inputs_kept(settings, output)
        check_output(output, force=force)


def _check_inputs_kept(settings: Any, output: Path) -> None:
    """Refuse to write over a file that the settings name; also with --force: the run could not be repeated."""
    for name in FILES:
        values = getattr(settings, name, None)
        for value in values if isinstance(values, tuple) else [values]:
            if not isinstance(value, str):
                continue
            value = file_of(name, value)
            if not os.path.isfile(value):
                value = value.rpartition(STRENGTH)[0]
            if not os.path.isfile(value):
                continue
            for replaced in existing(output):
                folder = replaced.is_dir() and replaced.resolve() in Path(value).resolve().parents
                if folder or (replaced.exists() and replaced.samefile(value)):
                    raise UsageError(
                        f"--output {place(output)} would replace what the run reads ({flag(name)} {place(value)}); "
                        "choose another --output"
                    )
