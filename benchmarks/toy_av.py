"""toy-av by the judge: the video against the prompt, the sound against the video, and each made for the other."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.toy_common import SPLITS, shares, split_counts, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks toy_av``."""
    parser.add_argument("--model", default="toy-av")
    parser.add_argument("--prompts", type=int, default=120, help="prompts in all, half of them seen (default 120)")
    parser.add_argument("--pairs", type=int, default=24, help="clips of which a half is given (default 24)")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--side", type=int, default=128, help="pixels per side (default 128)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", type=Path, help="also write a picture of the first clips with their waveforms")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import genkit
    from genkit.evaluation import toy_av as judged

    pipeline = genkit.load(options.model)
    request = judged.SoundRequest.of_model(
        options.model, num_frames=options.frames, height=options.side, width=options.side, steps=options.steps
    )
    bias = judged.own_bias(request)
    rows, first = _text_rows(pipeline, options.prompts, request, bias)
    rows += _given_rows(pipeline, options.pairs, request, bias)
    facts = environment()
    data = {
        "environment": facts,
        "model": options.model,
        "frames": options.frames,
        "side": options.side,
        "steps": options.steps,
        "call": request.call,
        "own bias ms": round(1000 * bias, 1),
        "accuracy": rows,
    }
    text = _report(data, facts)
    report("toy_av", data, text, options.output)
    if options.sheet:
        _write_sheet(options.sheet, *first, request.fps)
    return 0


def _text_rows(pipeline, prompts: int, request, bias: float) -> tuple[list[dict[str, object]], tuple[list, list]]:
    """Rows of clips made from text, and the first clips with their captions."""
    from genkit.evaluation import toy_av as judged

    counts = split_counts(prompts)
    plans = [(title, split, counts[split], 1) for split, title in SPLITS]
    plans.append(("seen, two objects", "train", max(prompts // 8, 2), 2))
    rows, first = [], ([], [])
    for title, split, count, actors in plans:
        chosen = judged.draw_sound_prompts(split, count, 1234, actors)
        texts = [text for _, text in chosen]
        clips, seconds = judged.generate_sound_clips(
            pipeline, texts, request, 1000, lambda done, total, name=title: tell(name, done, total)
        )
        rows.append(sound_row(title, [scene for scene, _ in chosen], clips, request, bias, seconds))
        first = first if first[0] else (clips[:8], texts[:8])
    return rows, first


def _given_rows(pipeline, pairs: int, request, bias: float) -> list[dict[str, object]]:
    """Rows of clips of the world: as they are, through the autoencoders, and with one half made by the model."""
    from genkit.evaluation import toy_av as judged

    chosen = judged.draw_sound_prompts("held_out_tuple", pairs, 4321)
    scenes, texts = [scene for scene, _ in chosen], [text for _, text in chosen]
    clips = [clip for clip, _ in judged.true_clips(scenes, request, 4321)]
    rows = [sound_row("the world's own clips", scenes, clips, request, bias)]
    coded = judged.coded_clips(pipeline, clips, request)
    rows.append(sound_row("the same through the autoencoders", scenes, coded, request, bias))
    for keep, title in (("audio", "sound given, video made"), ("video", "video given, sound made")):
        made, seconds = judged.complete_clips(
            pipeline, texts, clips, request, keep, 2000, lambda done, total, name=title: tell(name, done, total)
        )
        rows.append(sound_row(title, scenes, made, request, bias, seconds))
    return rows


def sound_row(title: str, scenes, clips, request, bias: float, seconds: float | None = None) -> dict[str, object]:
    """Cells of one row: the video against the prompt, the sound against the video."""
    from genkit.evaluation import toy_av as judged
    from genkit.evaluation.toy import ATTRIBUTES

    accuracy, sync = judged.judge_sound_clips(scenes, clips, request, bias)
    return {
        "clips": title,
        "number": len(clips),
        **shares(accuracy, ATTRIBUTES),
        "events seen / heard": f"{sync.seen} / {sync.heard}",
        "event F1": _figure(sync.f1, 1, 3),
        "offset ms": _figure(sync.offset, 1000, 0),
        "pitch": _figure(sync.pitch, 100, 1),
        "side": _figure(sync.side, 100, 1),
        "silence": _figure(sync.silence, 100, 1),
        "s per clip": "" if seconds is None else f"{seconds / len(clips):.2f}",
    }


def _figure(value: float, scale: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{scale * value:.{digits}f}"


def _write_sheet(path: Path, clips: list, texts: list[str], fps: float) -> None:
    import imageio.v3 as iio

    from genkit.evaluation.sound_sheet import sound_sheet

    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, sound_sheet(clips, texts, fps))


def _report(data: dict, facts: dict) -> str:
    settings = ", ".join(f"{key} {value!r}" for key, value in data["call"].items())
    return "\n".join(
        [
            "# toy-av by the judge",
            "",
            machine_line(facts),
            f"{data['frames']} frames of {data['side']}x{data['side']} at 8 fps, {data['steps']} steps, {settings}. "
            "Attributes of the video in percent with their standard error. Events are read from the clip's own frames "
            "and compared with what is heard in its own sound, within 0.25 s; the offset is the signed median of heard "
            f"minus seen, less the analysers' own {data['own bias ms']} ms. Pitch and side in percent of the matched "
            "events; silence is the share of clips without a visible event in which nothing is heard. The world's own "
            "clips and their way through the autoencoders show how far judge and coding allow any model to get.",
            "",
            table(data["accuracy"]),
            "",
        ]
    )
