"""Do two versions of genkit make the same pictures? The commands below, hashed by what a viewer sees and hears.

``python -m benchmarks same_outputs --save before.json`` in one checkout, ``--against before.json`` in the other, on the
same machine. Pixels and samples are hashed after decoding by other libraries, so that a record that gained a field
changes nothing. Exit code 1 when a command gives other bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

QUICK = "--steps 6 --seed 3"
VIDEO = f"generate CIRCLE {QUICK} --num-frames 9"
IMAGE = f"generate SQUARES --model toy-image {QUICK}"
SOUND = f"generate BALL --model toy-av {QUICK}"
TEXTS = {
    "CIRCLE": "a red circle moves right on a blue background",
    "SQUARES": "a striped red square left of a green circle",
    "BALL": "a green ball bounces twice",
    "NOTHING": "",
}
# Name -> command and its output. A later command may read an earlier one's output.
RUNS: dict[str, tuple[str, str]] = {
    "video": (f"{VIDEO}", "a.mp4"),
    "video long": (f"generate CIRCLE {QUICK}", "b.mp4"),
    "video size": (f"generate CIRCLE {QUICK} --height 96 --width 160 --num-frames 17", "c.mp4"),
    "video gif": (f"{VIDEO}", "d.gif"),
    "video webp": (f"{VIDEO}", "e.webp"),
    "video folder": (f"{VIDEO}", "frames"),
    "video numbered": (f"{VIDEO}", "f-%03d.png"),
    "video one frame": (f"generate CIRCLE {QUICK} --num-frames 1", "g.png"),
    "video two": (f"{VIDEO} --num-videos 2", "h-%d.mp4"),
    "video bfloat16": (f"{VIDEO} --dtype bf16", "i.mp4"),
    "video without guidance": (f"{VIDEO} --guidance-scale 1", "j.mp4"),
    "video negative prompt": (f"{VIDEO} --negative-prompt SQUARES", "k.mp4"),
    "video without words": (f"generate NOTHING {QUICK} --num-frames 9", "l.mp4"),
    "video enlarged": (f"{VIDEO} --enlarge 2", "m.mp4"),
    "video repeated": ("generate --from a.mp4", "n.mp4"),
    "video upscaled": (f"{VIDEO} --upscale 2 --attention sliding_window", "o.mp4"),
    "video sparse, upscaled dual": (
        f"{VIDEO} --upscale 1.5 --attention sliding_window --attention-args dual=true",
        "o2.mp4",
    ),
    "neighborhood": (f"{VIDEO} --attention neighborhood --attention-args size=3x5x5 --schedule steps=1:", "p.mp4"),
    "neighborhood disc": (
        f"{VIDEO} --attention neighborhood --attention-args size=3x7x7,shape=disc,radius=3 --schedule layers=1:",
        "p2.mp4",
    ),
    "neighborhood by the reference": (
        f"{VIDEO} --attention neighborhood --attention-args size=3x5x5 --backend reference",
        "p3.mp4",
    ),
    "sliding window": (f"{VIDEO} --attention sliding_window --attention-args base=6x6", "q.mp4"),
    "radial": (f"{VIDEO} --attention radial --schedule recommended", "r.mp4"),
    "radial thin": (f"{VIDEO} --attention radial --attention-args block_size=16,decay_factor=0.5", "r2.mp4"),
    "mixture of block": (f"{VIDEO} --attention mixture_of_block --schedule steps=1:,layers=1:", "s.mp4"),
    "mixture of block, boxes": (
        f"{VIDEO} --attention mixture_of_block --attention-args temporal=1,spatial=4x4,box=1x8x8,keep=0.5",
        "s2.mp4",
    ),
    "mixture of block, threshold": (
        f"{VIDEO} --attention mixture_of_block --attention-args select=threshold,scope=all,tau=0.5",
        "s3.mp4",
    ),
    "agent": (f"{VIDEO} --attention agent --attention-args cell=1x2x2", "t.mp4"),
    "recipe": (f"{VIDEO} --recipe toy-video-neighborhood --steps 8", "u.mp4"),
    "picture": (f"{IMAGE}", "v.png"),
    "picture small": (f"{IMAGE} --height 64 --width 64", "square.png"),
    "picture neighborhood": (f"{IMAGE} --attention neighborhood --attention-args size=1x9x9", "w.png"),
    "picture agent, cells": (f"{IMAGE} --attention agent --attention-args cell=1x4x4", "x.png"),
    "picture agent, merge": (f"{IMAGE} --attention agent --attention-args agents=merge,min_tokens=512", "x2.png"),
    "picture mixture of block": (f"{IMAGE} --attention mixture_of_block", "x3.png"),
    "picture windows": (f"{IMAGE} --attention sliding_window --attention-args base=16x16", "x4.png"),
    "picture follows one": (
        f"{IMAGE} --attention reference --attention-args weights=reference.safetensors --reference square.png",
        "y.png",
    ),
    "picture follows one, in a box": (
        f"{IMAGE} --attention reference --reference square.png@0.7 --reference-box 0,0,0.5,1",
        "y2.png",
    ),
    "joint picture": (f"generate SQUARES --model toy-dit {QUICK}", "z.png"),
    "joint picture neighborhood": (
        f"generate SQUARES --model toy-dit {QUICK} --attention neighborhood --attention-args size=1x9x9",
        "z2.png",
    ),
    "joint picture radial": (f"generate SQUARES --model toy-dit {QUICK} --attention radial", "z3.png"),
    "sound and video": (f"{SOUND}", "ab.mp4"),
    "sound and video, context": (f"{SOUND} --attention cross_modal_context", "ac.mp4"),
    "sound and video, soft context": (
        f"{SOUND} --attention cross_modal_context --attention-args partition=soft",
        "ad.mp4",
    ),
    "sound and video, radial": (f"{SOUND} --attention radial", "ae.mp4"),
    "video for a sound": (f"{SOUND} --audio ab.mp4", "af.mp4"),
    "sound for a video": (f"{SOUND} --video ab.mp4", "ag.mp4"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--save", type=Path, help="write the hashes to this JSON file")
    parser.add_argument("--against", type=Path, help="compare with the hashes of this file")
    parser.add_argument("--only", default="", help="only the commands whose name holds this text")


def run(options: argparse.Namespace) -> int:
    """Run every command, hash what it made, compare with an earlier run."""
    before = json.loads(options.against.read_text()) if options.against else {}
    found, changed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, output) in RUNS.items():
            if options.only not in name:
                continue
            found[name] = hash_of(command, Path(folder) / output)
            state = "" if name not in before else "same" if before[name] == found[name] else "OTHER"
            if state == "OTHER":
                changed.append(name)
            if options.save:
                options.save.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{found[name][:16]:18}{state:7}{name}", flush=True)
    if before:
        print(
            f"{len(found) - len(changed)} of {len(found)} commands give the same; other: {', '.join(changed) or 'none'}"
        )
    return 1 if changed else 0


def hash_of(command: str, output: Path) -> str:
    """The hash of what a command makes, or its complaint."""
    words = [TEXTS.get(word, word) for word in command.split()]
    line = [sys.executable, "-m", "genkit", *words, "-o", str(output)]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(line, cwd=output.parent, env=here, capture_output=True, text=True)
    if done.returncode:
        return f"failed ({done.returncode}): {' '.join(done.stderr.split())[-200:]}"
    digest = hashlib.sha256()
    for path in _files_of(output):
        _add(digest, path)
    return digest.hexdigest()


def _files_of(output: Path) -> list[Path]:
    if output.is_dir():
        return sorted(output.glob("*.png"))
    if "%" in output.name:
        start, suffix = output.name.split("%")[0], output.suffix
        return sorted(output.parent.glob(f"{start}*{suffix}"))
    return [output]


def _add(digest: hashlib._Hash, path: Path) -> None:
    """Add the decoded pixels and samples of a file."""
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as held:
            for stream in [*held.streams.video, *held.streams.audio]:
                held.seek(0)
                digest.update(
                    f"{stream.type} {stream.average_rate if stream.type == 'video' else stream.rate}".encode()
                )
                for frame in held.decode(stream):
                    digest.update(frame.to_ndarray().tobytes())
        return
    from PIL import Image, ImageSequence

    with Image.open(path) as picture:
        for frame in ImageSequence.Iterator(picture):
            digest.update(f"{frame.size} {frame.info.get('duration')}".encode())
            digest.update(frame.convert("RGBA").tobytes())
