"""A linear branch beside sparse attention, fitted on some prompts: what it brings on others, at the same share.

The projection of the branch is the ridge solution of layer-wise matching of dense attention, the model frozen. Held-out
prompts then tell the error of every layer's output, and clips made with the fitted weights how far they are from those
of dense attention.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment, machine_line, report, table
from benchmarks.recall import taker
from benchmarks.toy_common import parse_size, tell

SPARSE, KEYS, FORMS = "block_select keep={} block={}", ("unselected", "all"), ("softmax", "elu", "rala")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks linear_branch``."""
    parser.add_argument("--model", default="toy-video")
    parser.add_argument("--fit", type=int, default=8, help="prompts that projections are fitted on")
    parser.add_argument("--prompts", type=int, default=8, help="other prompts that are measured")
    parser.add_argument("--size", default="25x192x192", help="frames x height x width")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--at", default="3,6,9", help="steps whose queries, keys and values are looked at")
    parser.add_argument("--keep", default="0.1,0.25", help="shares of the blocks that the sparse part keeps")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--forms", default="softmax", help=f"of the branch, of {', '.join(FORMS)}")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    import genkit
    from genkit.evaluation.toy import ClipRequest, draw_prompts

    torch.set_num_threads(1)
    pipeline = genkit.load(options.model)
    pipeline.set_progress_bar_config(disable=True)
    request = ClipRequest(*parse_size(options.size), options.steps, batch=1)
    captions = [caption for _, caption in draw_prompts("train", options.fit + options.prompts, seed=91)]
    shares = [float(share) for share in options.keep.split(",")]
    fits = _fits(shares, options)
    calls = _calls(pipeline, captions, request, options, lambda found, run: _absorb(fits, found, run))
    losses = {name: fit.solve() for name, fit in fits.items()}
    rows = [_layer_row(name, method, calls) for name, method in _methods(shares, options, fits).items()]
    clips = _clips(pipeline, captions[options.fit :], request, shares, options, fits)
    facts = environment()
    told = {"fit": options.fit, "prompts": options.prompts, "at": options.at, "block": options.block}
    data = {"environment": facts, "model": options.model, "size": options.size, "steps": options.steps, **told}
    data |= {"layers": rows, "clips": clips, "left of the squared error, prompts left out in turn": _means(losses)}
    report("linear_branch", data, _text(options, facts, rows, clips, calls[0][0][3].layout.length), options.output)
    return 0


def _fits(shares: list[float], options: argparse.Namespace) -> dict[str, Any]:
    from genkit.attention.sparse_linear import ProjectionFit, SparseLinear

    found = {}
    for share in shares:
        for form in options.forms.split(","):
            for keys in KEYS:
                for projection in ("shared", "head"):
                    sparse = SPARSE.format(share, options.block)
                    method = SparseLinear(sparse=sparse, keys=keys, form=form, projection=projection)
                    found[f"{share:g} {form} {keys} {projection}"] = ProjectionFit(method)
    return found


def _calls(pipeline: Any, captions: list[str], request: Any, options: argparse.Namespace, absorb: Any) -> list[list]:
    """Calls of the held-out prompts, a list per prompt; those of the first ones go to ``absorb``."""
    import genkit
    from genkit.evaluation.toy import generate_clips

    taken, held = taker([int(step) for step in options.at.split(",")]), []
    for index, caption in enumerate(captions):
        calls = taken()
        with genkit.patch(pipeline, calls, schedule=genkit.Schedule(branches="cond")):
            generate_clips(pipeline, [caption], request, 700 + index)
        if index < options.fit:
            absorb(calls.found, index)
        else:
            held.append(calls.found)
        tell("prompts", index + 1, len(captions))
    return held


def _absorb(fits: dict[str, Any], found: list, run: int) -> None:
    from genkit.attention.cache import PatchCache

    for fit in fits.values():
        cache = fit.held.setdefault("cache", PatchCache())
        for q, k, v, site in found:
            if site.name not in fit.layers:
                fit.install(_place(site, q), cache)
            fit.attend(q, k, v, replace(site, run=run), cache)


def _place(site: Any, q: Any) -> Any:
    import torch

    from genkit.attention.site import Place

    module = torch.nn.Module()
    module.to_q = torch.nn.Linear(1, q.shape[2] * q.shape[3])
    return Place(site.name, site.role, site.layer, site.layers, q.shape[2], module)


def _methods(shares: list[float], options: argparse.Namespace, fits: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> method and the cache with its weights."""
    from genkit.attention.cache import PatchCache
    from genkit.attention.sparse_part import parse

    found: dict[str, tuple[Any, Any]] = {}
    for share in shares:
        sparse = SPARSE.format(share, options.block)
        found[f"{share:g} sparse alone"] = parse(sparse, "sparse"), PatchCache()
        found[f"{share:g} + pooled tail of 16"] = parse(f"{sparse} tail=16", "sparse"), PatchCache()
        found |= {
            f"{share:g} + branch: {name.partition(' ')[2]}": (fit.method, fit.held["cache"])
            for name, fit in fits.items()
            if name.startswith(f"{share:g} ")
        }
        more = share + 0.1
        found[f"{more:g} sparse alone"] = parse(SPARSE.format(f"{more:g}", options.block), "sparse"), PatchCache()
    return found


def _layer_row(name: str, built: tuple[Any, Any], calls: list[list]) -> dict[str, object]:
    """Error of a method's output over all held-out calls, and the time of a call."""
    import torch

    from genkit.attention.static import dense_attention

    method, cache = built
    errors, seconds, density = [], [], []
    with torch.no_grad():
        for found in calls:
            each = []
            for q, k, v, site in found:
                dense = dense_attention(q, k, v, site.scale, None)
                start = time.perf_counter()
                out = method.attend(q, k, v, site, cache)
                seconds.append(time.perf_counter() - start)
                each.append(float((out - dense).norm() / dense.norm()))
                density.append(method.density(site, cache).executed)
            errors.append(float(np.mean(each)))
    return {
        "sparse part's share and what is beside it": name,
        "executed, branch included": f"{np.mean(density):.3f}",
        "error of the output": f"{np.mean(errors):.4f} ± {np.std(errors, ddof=1) / len(errors) ** 0.5:.4f}",
        "call ms": f"{1e3 * np.median(seconds):.1f}",
    }


def _clips(
    pipeline: Any, captions: list[str], request: Any, shares: list[float], options: argparse.Namespace, fits: dict
) -> list[dict[str, object]]:
    """PSNR to the clips of dense attention, the first quarter of the steps dense for all."""
    import genkit
    from genkit.attention.sparse_part import parse
    from genkit.evaluation.metrics import psnr
    from genkit.evaluation.toy import generate_clips

    schedule = genkit.Schedule(steps=f"{-(-options.steps // 4)}:")
    dense, _ = generate_clips(pipeline, captions, request, 900)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for share in shares:
            sparse = SPARSE.format(share, options.block)
            alone = parse(sparse, "sparse")
            variants: dict[str, Any] = {"sparse alone": alone}
            for name in ("unselected head", "all shared"):
                fit = fits[f"{share:g} {options.forms.split(',')[0]} {name}"]
                file = Path(folder) / f"{share:g}-{name}.safetensors"
                fit.write(file)
                variants[f"+ branch: {fit.method.form} {name}"] = replace(fit.method, weights=str(file))
            variants["+ pooled tail of 16"] = parse(f"{sparse} tail=16", "sparse")
            base: list[float] = []
            for name, method in variants.items():
                with genkit.patch(pipeline, method, schedule=schedule):
                    made, _ = generate_clips(pipeline, captions, request, 900)
                found = [psnr(one, two) for one, two in zip(made, dense, strict=True)]
                base = base or found
                gain = np.subtract(found, base)
                rows.append(
                    {
                        "sparse part's share and what is beside it": f"{share:g} {name}",
                        "PSNR to dense, dB": f"{np.mean(found):.2f} ± {_error(found):.2f}",
                        "gain over sparse alone": "" if base is found else f"{gain.mean():+.2f} ± {_error(gain):.2f}",
                    }
                )
                tell("clips", len(rows), len(shares) * len(variants))
    return rows


def _error(values: Any) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def _means(losses: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean(list(each.values()))), 4) for name, each in losses.items()}


def _text(options: argparse.Namespace, facts: dict, rows: list, clips: list, tokens: int) -> str:
    named = ("model", "fit", "prompts", "size", "steps", "at", "keep", "block", "forms")
    command = " ".join(f"--{name} {getattr(options, name)}" for name in named)
    return "\n".join(
        [
            "# A linear branch beside sparse attention",
            "",
            machine_line(facts),
            f"{options.model}, {options.size} ({tokens:,} tokens), {options.steps} steps; block_select with blocks of "
            f"{options.block}. The projection of the branch was fitted to dense attention, layer by layer, by ridge "
            f"regression on queries, keys and values of {options.fit} prompts at steps {options.at}, the model frozen "
            "and the penalty chosen by prompts left out in turn; where none helped these, the layer has no branch. "
            f"Measured on {options.prompts} other prompts. Errors are standard errors over prompts.",
            "",
            f"`python -m benchmarks linear_branch {command}`",
            "",
            "## The output of every layer",
            "Norm of the difference to dense attention over the norm of dense attention, mean over layers and steps. "
            "Executed: work as a share of that of dense attention. Times in float32 on one thread, on a machine that "
            "was not idle.",
            "",
            table(rows),
            "",
            "## Clips",
            "The first quarter of the steps is dense. Gains are differences prompt by prompt.",
            "",
            table(clips),
            "",
        ]
    )
