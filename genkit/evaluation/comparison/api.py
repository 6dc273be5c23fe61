"""``genkit.compare``: several ways to run one loaded pipeline, compared from the same seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from genkit import __version__
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.evaluation.comparison import perceptual as perceptual_distance
from genkit.evaluation.comparison.caches import parse_cache
from genkit.evaluation.comparison.loop import Follower, Loop
from genkit.evaluation.comparison.makers import PipelineMaker
from genkit.evaluation.comparison.memory import machine
from genkit.evaluation.comparison.report.write import PLAYED, Report
from genkit.evaluation.comparison.results import Comparison, Row
from genkit.evaluation.comparison.variants import DENSE, check_name

_KEYS = ("attention", "schedule", "roles", "backend", "check", "cache", "call")


def compare(
    pipe: Any,
    prompts: str | Sequence[str],
    variants: Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 0,
    baseline: str = DENSE,
    output: str | Path | None = None,
    fps: float | str | Fraction | None = None,
    perceptual: bool | None = None,
    warm_up: bool = True,
    played: int = PLAYED,
    force: bool = False,
    **call: Any,
) -> Comparison:
    """Run a pipeline in several ways from the same noise and measure what each costs and what it changes.

    Args:
        pipe: a loaded Diffusers pipeline for pictures, clips or clips with sound, of any family that genkit knows.
        prompts: one or several.
        variants: name -> an attention method, a :class:`genkit.Part`, a list of these, a recipe, None (the model's own
            attention), or a mapping with ``attention``, ``schedule``, ``roles``, ``backend``, ``check``, ``cache``
            (``"first_block:threshold=0.1"`` or a configuration of Diffusers) and ``call`` (arguments of the call).
        seeds: one or several; every prompt runs with every seed.
        baseline: the variant that the others are compared with. ``"dense"``, the model's own attention, need not be
            among ``variants``.
        output: ``*.html``: write the report there, the numbers and a contact sheet beside it, and the outputs without
            loss into ``*_outputs``; None writes nothing.
        fps: of clips; the family's usual rate when left out.
        perceptual: ST-LPIPS and, of clips, VMAF too; None = where ``genkit[metrics]`` is installed.
        warm_up: run a few steps of every variant before anything is timed.
        played: how many prompts and seeds the page can play.
        force: replace an earlier report.
        **call: arguments of every call of the pipeline, such as ``num_inference_steps=20``.

    Returns:
        The comparison: ``summary(name)`` has means with intervals, ``rows`` every run, ``to_dict()`` all of it.
        Variants that failed are in ``failed``; the others ran on.

    Raises:
        UsageError: no prompt, nothing to compare, an unknown name. UnsupportedError: ``perceptual=True`` without the
            package. ArtifactError: the report cannot be written.

    Cost: every variant once for every prompt and seed, a few steps of warm-up, and seconds of numbers and pictures.
    """
    texts = _several(prompts, "prompts", str, "texts")
    numbers = _several(seeds, "seeds", int, "whole numbers")
    named = _named(variants, baseline)
    rate = _rate(pipe, fps)
    makers = {name: _maker(pipe, name, given, call, rate) for name, given in named.items()}
    reason = perceptual_distance.why_not()
    if perceptual and reason is not None:
        raise UnsupportedError(f"perceptual=True: {reason}")
    rows = [Row(name, _words(named[name]), number == 0) for number, name in enumerate(named)]
    comparison = Comparison(rows, texts, numbers, about=_about(pipe, call))
    report = None if output is None else Report(Path(output), force=force, played=played)
    if report is not None:
        report.check()
    with_perceptual = reason is None if perceptual is None else perceptual
    loop = Loop(makers, comparison, report or Follower(), with_perceptual, warm_up)
    with report or nullcontext():
        try:
            loop.run()
        finally:
            if report is not None and any(row.runs or row.failed for row in rows):
                report.write(comparison)
    return comparison


def _several(given: Any, what: str, kind: type, words: str) -> list[Any]:
    """One value or a sequence of them as a list: runs are told apart by them, so each stands there once."""
    one = isinstance(given, kind) or not isinstance(given, Iterable)
    found = [given] if one else list(given)
    if not found or any(isinstance(each, bool) or not isinstance(each, kind) for each in found):
        raise UsageError(explain(what, given, f"one or several {words}"))
    if len(set(found)) < len(found):
        raise UsageError(explain(what, given, f"{words}, each once"))
    return found


def _named(variants: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    if not isinstance(variants, Mapping) or not variants:
        raise UsageError(explain("variants", variants, "a mapping from names to methods, such as {'radial': method}"))
    found = {str(name): given for name, given in variants.items()}
    for name, given in found.items():
        check_name(name, given is not None, _words(given))
    if baseline == DENSE:
        found.setdefault(DENSE, None)
    if baseline not in found:
        raise UsageError(explain("baseline", baseline, [DENSE, *found]))
    if len(found) < 2:
        raise UsageError("nothing to compare: give a variant beside the baseline")
    return {baseline: found.pop(baseline), **found}


def _maker(pipe: Any, name: str, given: Any, call: Mapping[str, Any], fps: Fraction | None) -> PipelineMaker:
    from genkit.patching.handle import check
    from genkit.patching.parts import as_parts

    options = dict(given) if isinstance(given, Mapping) else {"attention": given}
    for key in options:
        if key not in _KEYS:
            raise UsageError(explain(f"key of variant {name!r}", key, _KEYS))
    method, cache = options.pop("attention", None), options.pop("cache", None)
    arguments = {**call, **options.pop("call", {})}
    if method is not None:
        as_parts(method, options.get("schedule"), options.get("roles"))
        check(pipe, method, schedule=options.get("schedule"), roles=options.get("roles"))
    elif options:
        raise UsageError(f"variant {name!r} has {', '.join(options)} without an attention")
    config = parse_cache(cache, "cache") if isinstance(cache, str) else cache
    return PipelineMaker(pipe, method, options, config, arguments, fps)


def _words(given: Any) -> str:
    if given is None:
        return "the model as it is"
    if isinstance(given, Mapping):
        return "; ".join(f"{key}={_words(value) if key == 'attention' else value}" for key, value in given.items())
    if isinstance(given, (list, tuple)):
        return ", ".join(map(_words, given))
    described = getattr(given, "describe", None)
    return described() if callable(described) else str(getattr(given, "name", given))


def _rate(pipe: Any, fps: Any) -> Fraction | None:
    from genkit.media import exact_fps
    from genkit.pipelines.kinds import IMAGE, kind_of, native_fps

    if kind_of(type(pipe)) is IMAGE:
        return None
    return exact_fps(native_fps(type(pipe).__name__) if fps is None else fps)


def _about(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    from genkit.pipelines.record import made_with

    made = made_with("", type(pipe).__name__, str(getattr(pipe, "_execution_device", "cpu")), [])
    plain = {key: value for key, value in call.items() if isinstance(value, (str, int, float, bool))}
    return {
        "genkit": __version__,
        "command": "",
        "command_line": f"genkit.compare({type(pipe).__name__}, ...)",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {**plain, "model": type(pipe).__name__, "steps": plain.get("num_inference_steps")},
        "made_with": {
            **machine(str(getattr(pipe, "_execution_device", "cpu"))),
            **{key: value for key, value in made.items() if value not in ("", [])},
        },
    }
