"""What a run is at and what a result is, as the page's HTML. Everything that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from genkit.demo.engine.job import DECODING, DONE, FAILED, LOADING, QUEUED, STEPS, STOPPED, State
from genkit.pipelines.forecast import span


def idle(hint: str = "") -> str:
    """The box as long as nothing runs; ``hint`` says how to begin."""
    return f'<div class="status idle" role="status"><p>Nothing runs. {escape(hint)}</p></div>'


def status(state: State) -> str:
    """One box: what happens, how far it is, how long it takes, or why it failed."""
    of = f" · {state.run} of {state.runs}" if state.runs > 1 and not state.ended else ""
    left = "" if state.left is None or state.ended else f"about {span(state.left)} left"
    if state.phase == FAILED:
        return _box("failed", f"<p>{escape(state.message)}</p>", "alert")
    if state.phase == STOPPED:
        return _box("idle", "<p>Stopped. Nothing was kept of this run.</p>")
    if state.phase == DONE:
        return _box("done", "<p><b>Done</b></p>" + _notes(state))
    if state.phase == STEPS:
        told = f"<p><b>Step {state.step} of {state.steps}{of}</b><span>{left}</span></p>"
        return _box("busy", told + _bar(state.share))
    words = {
        QUEUED: "Waiting for the run before it",
        LOADING: "Loading the model",
        DECODING: "Turning latents into pixels",
    }.get(state.phase, "Checking settings")
    return _box("busy", f"<p><b>{words}{of}</b><span>{left}</span></p>{_bar(None)}")


def _box(kind: str, inside: str, role: str = "status") -> str:
    return f'<div class="status {kind}" role="{role}" aria-live="polite">{inside}</div>'


def _bar(share: float | None) -> str:
    if share is None:
        return '<div class="bar open"><i></i></div>'
    percent = round(100 * share)
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<i style="width:{percent}%"></i></div>'
    )


def _notes(state: State) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in state.notes)
    return f"<ul>{lines}</ul>" if lines else ""


def facts(made: Any) -> str:
    """Chips about a result: seed, size, time, steps, density."""
    settings = made.settings
    count, height, width = made.size
    told = {"seed": getattr(settings, "seed", None), "size": f"{width} × {height}"}
    if count > 1:
        told["frames"] = f"{count} at {float(made.fps):g} fps"
    if made.sound is not None:
        told["sound"] = f"{made.sound:.1f} s"
    told["steps"] = getattr(settings, "steps", None)
    told["time"] = f"{made.seconds:.1f} s"
    name = getattr(settings, "attention", None) or getattr(settings, "recipe", None)
    told["attention"] = name
    told["pairs executed"] = density(made.report)
    told |= made.kept
    given = {key: value for key, value in told.items() if value not in (None, "")}
    chips = "".join(f"<span>{escape(key)} <b>{escape(str(value))}</b></span>" for key, value in given.items())
    return f'<div class="facts">{chips}</div>'


def titles(every: Sequence[Any]) -> list[str]:
    """What tells results of one run apart: their prompts, or else their seeds."""
    prompts = [str(each.settings.prompt) for each in every]
    if len(set(prompts)) > 1:
        return prompts
    return [f"seed {getattr(each.settings, 'seed', None)}" for each in every]


def density(report: dict[str, Any] | None) -> str | None:
    """The share of query-key pairs that a patch executed."""
    found = None if report is None else report["density"]
    return None if found is None else f"{found['executed']:.0%}"


def curve(rows: list[tuple[int, float]]) -> str:
    """The course of a loss as a line, with its first and last value."""
    width, height = 560, 150
    low, high = min(loss for _, loss in rows), max(loss for _, loss in rows)
    last = max(rows[-1][0], 1)
    points = " ".join(
        f"{step / last * width:.1f},{height - (loss - low) / ((high - low) or 1) * height:.1f}" for step, loss in rows
    )
    told = f"loss {rows[0][1]:.4f} at step {rows[0][0]}, {rows[-1][1]:.4f} at step {rows[-1][0]}"
    return (
        f'<figure class="loss"><svg viewBox="-4 -6 {width + 8} {height + 12}" role="img" aria-label="{told}">'
        f'<polyline points="{points}"/></svg><figcaption>{told}</figcaption></figure>'
    )
