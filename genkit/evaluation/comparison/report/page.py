"""One HTML file with everything in it: players, plots, pictures and numbers; nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from genkit.errors import counted
from genkit.evaluation.comparison.bands import BANDS, MEANING, PSNR_KEPT, PSNR_SAME, WORST_KEPT, WORST_SAME
from genkit.evaluation.comparison.intervals import LEAST
from genkit.evaluation.comparison.report.media import Shown
from genkit.evaluation.comparison.results import Comparison

HERE = Path(__file__).parent
#: No address outside of the file is ever asked.
POLICY = (
    "default-src 'none'; img-src data: blob:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


@cache
def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def data_url(kind: str, content: bytes) -> str:
    """A file as an address of its own."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _facts(comparison: Comparison) -> str:
    about = comparison.about
    made = {**about.get("made_with", {}), **{key: about[key] for key in ("genkit", "made_at") if key in about}}
    lines = [(str(key).replace("_", " "), _words(value)) for key, value in made.items() if value not in (None, [], {})]
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in lines)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _lead(comparison: Comparison) -> str:
    settings = comparison.about.get("settings", {})
    sizes = [settings.get(name) for name in ("num_frames", "height", "width")]
    size = "x".join(str(each) for each in sizes if each is not None)
    outputs = len(comparison.prompts) * len(comparison.seeds)
    parts = [
        str(settings.get("model") or comparison.about.get("pipeline") or ""),
        size,
        counted(settings["steps"], "step") if settings.get("steps") else "",
        f"{len(comparison.prompts)} prompt{'s' * (len(comparison.prompts) != 1)} x {len(comparison.seeds)} "
        f"seed{'s' * (len(comparison.seeds) != 1)} = {outputs} output{'s' * (outputs != 1)} a variant",
    ]
    return escape(" · ".join(part for part in parts if part))


def _reading(comparison: Comparison) -> str:
    limits = {
        BANDS[0]: f"PSNR from {PSNR_SAME:g} dB, no frame's SSIM below {WORST_SAME}",
        BANDS[1]: f"from {PSNR_KEPT:g} dB, no frame's SSIM below {WORST_KEPT}",
        BANDS[2]: "all else",
    }
    kinds = dict(zip(BANDS, ("same", "kept", "gone"), strict=True))
    bands = "".join(
        f'<p class="note"><span class="chip {kinds[name]}">{name}</span> {limits[name]}: {MEANING[name]}.</p>'
        for name in BANDS
    )
    count = len(comparison.prompts) * len(comparison.seeds)
    interval = (
        "Small numbers are 95 % intervals of the mean over prompts and seeds (Student's t), paired by prompt and seed."
        if count >= LEAST
        else "Fewer than three outputs a variant: means have no interval. More prompts or --num-videos give one."
    )
    return (
        f"{bands}<p class='note'>The bands were fitted on toy-video, where a judge sees what moved; for other models "
        f"they are a rule of thumb. All numbers tell closeness to the baseline, not quality. {interval} Speed and "
        f"attention were timed in one process, variants taking turns, after a warm-up.</p>"
    )


def page(comparison: Comparison, shown: Sequence[Shown], shrunk: str = "") -> str:
    """The whole page.

    Args:
        comparison: what was found.
        shown: outputs that can be played.
        shrunk: a sentence about how they were made smaller, or "".
    """
    media = [
        {
            "prompt": each.prompt,
            "seed": each.seed,
            "fps": each.fps,
            "clips": {
                name: {
                    "frames": [data_url("image/webp", frame) for frame in clip.frames],
                    "sound": None if clip.sound is None else data_url("audio/wav", clip.sound),
                }
                for name, clip in each.clips.items()
            },
        }
        for each in shown
    ]
    drawn = {
        name: [(words, data_url("image/png", content)) for words, content in pictures]
        for name, pictures in comparison.masks.items()
        if pictures
    }
    names = [row.name for row in comparison.rows[1:]]
    title = f"{comparison.baseline.name} against {', '.join(names) if len(names) < 3 else f'{len(names)} variants'}"
    command = escape(str(comparison.about.get("command_line", "")))
    left = len(comparison.prompts) * len(comparison.seeds) - len(shown)
    more = (
        f"{counted(left, 'more output is', 'more outputs are')} in the numbers and in the folder of outputs, "
        "not in this page. "
        if left > 0
        else ""
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)} · genkit compare</title>
<style>{_own("page.css")}</style></head><body><main>
<h1>{escape(title)}</h1><p class="lead">{_lead(comparison)}</p>
<div id="alarm" class="card warn" hidden></div>
<h2>At a glance</h2><div id="summary" class="card scroll"></div>{_reading(comparison)}
<section id="viewer"><h2>Look</h2><div class="card">
<div class="tools"><label>prompt <select id="prompt"></select></label><label>left <select id="a"></select></label>
<label>right <select id="b"></select></label><span id="mode" class="seg" role="group" aria-label="how to compare">
<button data-mode="wipe" aria-pressed="true">Wipe</button>
<button data-mode="side" aria-pressed="false">Side by side</button>
<button data-mode="difference" aria-pressed="false">Difference</button></span></div>
<div id="stage" class="stage"></div>
<div id="time" class="time"><button id="play">Play</button><input id="frame" type="range" min="0" value="0"
 aria-label="frame"><output id="count"></output></div>
<div id="all" class="all"></div></div>
<p class="note">{escape(more + shrunk)}A click on an output puts it on the right. All play in step.</p></section>
<section id="curves"><h2>Frame by frame, step by step</h2><div id="legend" class="legend"></div>
<div id="plots" class="plots"></div></section>
<section id="pictures"><h2>What the methods see</h2><div id="masks" class="masks"></div></section>
<section><h2>How it was made</h2><div id="told"></div><pre>{command}</pre><dl>{_facts(comparison)}</dl></section>
</main>
<script type="application/json" id="data">{_json(comparison.to_dict())}</script>
<script type="application/json" id="media">{_json(media)}</script>
<script type="application/json" id="drawn">{_json(drawn)}</script>
<script>{_own("page.js")}</script></body></html>
"""
