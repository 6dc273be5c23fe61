"""The outputs of one command: every prompt with every seed, each under its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genkit.errors import UsageError
from genkit.media import check_output, numbered
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.resolve import Request
from genkit.pipelines.text import slug


def expand(request: Request, prompts: list[str]) -> list[tuple[Any, Path]]:
    """All runs of a request with their output names: every prompt with ``num_videos`` seeds, numbered when there are
    several."""
    base, kind = request.settings, request.model.kind
    count = len(prompts) * base.num_videos
    jobs = []
    for index, prompt in enumerate(prompts):
        for offset in range(base.num_videos):
            job = base if count == 1 else base.replace(prompt=prompt, seed=base.seed + offset, num_videos=1)
            still = kind is IMAGE or request.frames == 1
            if base.output is not None:
                output = numbered(base.output, index * base.num_videos + offset, count, still=still)
            else:
                output = Path(f"{slug(prompt)}-{job.seed}{'.png' if still else kind.suffix}")
            jobs.append((job, output))
    seen: set[Path] = set()
    for _, output in jobs:
        if output in seen:
            raise UsageError(f"two prompts would write {output}; give --output, its name is then numbered")
        seen.add(output)
    return jobs


def check_outputs(outputs: list[Path], *, force: bool) -> None:
    """Refuse a batch before it starts when any of its outputs exists or cannot be written."""
    for output in outputs:
        check_output(output, force=force)
