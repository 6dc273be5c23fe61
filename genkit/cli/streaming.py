"""``genkit generate --stream``: frames go to a file or a pipe as they are made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from genkit.cli.output import OutputError, note, print_json, say, warn
from genkit.errors import ArtifactError, UsageError, counted, explain

PIPE = "-"


def check_stream(settings: Any, prompts: list[str], output: Path, force: bool, as_json: bool) -> None:
    """Refuse what a stream cannot be written to, before any work is done."""
    from genkit.media import check_output, format_of

    if len(prompts) > 1:
        raise UsageError("--prompt-file and --stream exclude each other: prompts that follow go with --at FRAME")
    if str(output) == PIPE:
        if as_json:
            raise UsageError("--json and -o - both want standard output; write the video to a file")
        if sys.stdout is None or sys.stdout.isatty():
            raise UsageError("-o - writes a video to standard output, which is a terminal; pipe it into a player")
        return
    if format_of(output) != "mp4":
        raise UsageError(explain("--output of a stream", str(output), "a file ending in .mp4, or - for a pipe"))
    check_output(output, force=force)


def write_stream(session: Any, job: Any, output: Path, warned: list[str], as_json: bool) -> None:
    """Make a stream and write it; whatever ends it, what was written plays. ``warned``: what was said before."""
    from genkit.media import FragmentedVideo, ReaderGone, sidecar_of
    from genkit.media.atomic import Files
    from genkit.media.formats import dump

    session.load()
    record, begun, first = session.record(job), time.perf_counter(), None
    try:
        chunks = session.stream(job)
        head = next(chunks)  # what stands at the output is touched once there is something to put in its place
        name = "standard output" if str(output) == PIPE else str(output)
        with _sink(output) as sink, FragmentedVideo(sink, job.fps, comment=dump(record), name=name) as video:
            try:
                for frames in chain([head], chunks):
                    video.write(frames)
                    if first is None:
                        first = time.perf_counter() - begun
                        note(f"first {counted(len(frames), 'frame')} after {first:.1f} s")
            finally:
                failed = sys.exc_info()[0] is not None
                if video.frames and str(output) != PIPE:
                    made = {"frames": video.frames, "seconds": round(time.perf_counter() - begun, 3)}
                    text = json.dumps({**record, "notes": made}, indent=2, sort_keys=True)
                    # Where the video ended for a reason, that is told and not what became of the file beside it.
                    with suppress(ArtifactError) if failed else nullcontext(), Files() as files:
                        files.new(sidecar_of(output)).write_text(text + "\n", encoding="utf-8")
    except ReaderGone as error:
        raise OutputError(str(error)) from error
    seconds = time.perf_counter() - begun
    told = (
        f"{counted(video.frames, 'frame')} {job.width}x{job.height} at {job.fps} fps, seed {job.seed}, {seconds:.1f} s"
    )
    notes = list(session.request.notes)
    later = [line for line in session.warnings if line not in (*notes, *warned)]
    for line in later:
        warn(line)
    if as_json:
        print_json({"outputs": [{"file": str(output), "frames": video.frames, "height": job.height, "width": job.width,
                                 "fps": str(job.fps), "seconds": round(seconds, 3), "first_frames_after": first,
                                 "settings": job.to_dict()}], "notes": notes, "warnings": warned + later})  # fmt: skip
    elif str(output) == PIPE:
        note(told)
    else:
        say(f"{output}  ({told})")


@contextmanager
def _sink(output: Path) -> Iterator[BinaryIO]:
    """Where the bytes go."""
    if str(output) == PIPE:
        yield sys.stdout.buffer
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.open("wb")
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # bytes that could not be written were told of, closing tries them again
            file.close()
        with suppress(OSError):
            if not output.stat().st_size:
                output.unlink()
        raise
    file.close()
