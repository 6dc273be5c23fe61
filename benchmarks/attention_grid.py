"""Every kind of mask at every length, role and backend: forward and backward, errors and speed, in one run.

One attention call without a model. Queries and keys are random, so methods that choose by content choose at random,
which is their worst case. What a backend computes is compared with the plain form of the same mask in float64, outputs
and gradients; times are the best of several turns, dense attention (torch's) measured in the same turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import Variant
from benchmarks.environment import RESULTS, environment, machine_line, report, table, write_results
from benchmarks.toy_common import parse_size, tell
from genkit.reading import whole

NAME = "attention_grid"
GRIDS = ("4x8x8", "7x16x16", "7x32x32")
ROLES = ("self", "joint", "spatial", "temporal")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXT = 64
#: Up to so many tokens the plain form is computed, in float64 and as a backend: its maps grow with the square of them.
JUDGED = 2048
DENSE, REFERENCE = "dense", "reference"
#: A kind of mask each.
MASKS = (
    Variant("neighborhood", {"size": "allx0.5x0.5"}, {}),
    Variant("neighborhood", {"size": "allx0.5x0.5", "stride": "1x4x4"}, {}),
    Variant("sliding_window", {"base": "4,4"}, {}),
    Variant("radial", {"sink": "false", "near": "decay"}, {}),
    Variant("shifted_groups", {}, {}),
    Variant("shards", {}, {}),
    Variant("mixture_of_block", {}, {}),
    Variant("block_select", {"keep": "0.2"}, {}),
    Variant("block_select", {"keep": "0.1", "tail": "16"}, {}),
    Variant("pyramid", {}, {}),
    Variant("agent", {}, {}),
)
Call = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Place:
    """Where masks are measured.

    Args:
        grid: frames x height x width. role: of the attention. dtype: of queries, keys and values.
    """

    grid: str
    role: str
    dtype: str

    def site(self, heads: int) -> tuple[Any, int]:
        """The site and the batch: of folded attention the frames, or the places, of one clip."""
        from genkit.attention.site import Site
        from genkit.layout import TokenLayout

        frames, height, width = parse_size(self.grid)
        axes, batch = {
            "spatial": ((1, height, width), frames),
            "temporal": ((frames, 1, 1), height * width),
        }.get(self.role, ((frames, height, width), 1))
        layout = TokenLayout.of_grid(*axes, text=TEXT if self.role == "joint" else 0)
        return Site.of_layout(layout, role=self.role, heads=heads, step=10, steps=20), batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks attention_grid``."""
    parser.add_argument("--grid", action="append", help=f"frames x height x width; repeatable (default {GRIDS})")
    parser.add_argument(
        "--role", action="append", choices=ROLES, help="repeatable; default: all but temporal, whose rows are as short "
        "as a clip has latent frames",
    )  # fmt: skip
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="repeatable; default: float32")
    parser.add_argument("--backend", action="append", help="repeatable; default: all that serve the device")
    parser.add_argument("--heads", type=whole(1), default=4)
    parser.add_argument("--channels", type=whole(1), default=64, help="of a head (default 64)")
    parser.add_argument("--turns", type=whole(1), default=5, help="times everything is measured (default 5)")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure place by place, and write the report after each."""
    torch.set_num_threads(options.threads)
    facts = {**environment(), "load average": os.getloadavg()}
    names = usable(options)
    places = [
        Place(grid, role, dtype)
        for dtype in options.dtype or ("float32",)
        for grid in options.grid or GRIDS
        for role in options.role or ROLES[:-1]
    ]
    rows: list[dict[str, Any]] = []
    for number, place in enumerate(places):
        rows += measured(place, names, options)
        tell(NAME, number + 1, len(places))
        write_results(NAME, {"environment": facts, "rows": rows}, _text(rows, facts, options), options.output)
    report(NAME, {"environment": facts, "rows": rows}, _text(rows, facts, options), options.output)
    return 0


def usable(options: argparse.Namespace) -> list[str]:
    """Backends that serve the device with gradients.

    Raises:
        UnsupportedError: one that was asked for does not.
    """
    from genkit.errors import UnsupportedError
    from genkit.kernels import BlockPlan, backends, block_sparse
    from genkit.patching.parts import check_backend

    device = torch.device(options.device)
    tensors = [torch.zeros(1, 256, options.heads, options.channels, device=device) for _ in range(3)]
    every = BlockPlan.from_dense_blocks(
        torch.ones(2, 4, dtype=torch.bool, device=device), 256, 256, block_q=128, block_k=64
    )
    found = []
    for name in options.backend or backends():
        reason = block_sparse.why_not(check_backend(name), *tensors, every, needs_grad=True)
        if reason is None:
            found.append(name)
        elif options.backend:
            raise UnsupportedError(f"backend {name}: {reason}")
    return found


def _text(rows: list[dict[str, Any]], facts: dict[str, Any], options: argparse.Namespace) -> str:
    return "\n".join(
        [
            "# Masks, lengths, roles, backends",
            "",
            f"{machine_line(facts)} One attention call without a model on {options.device}, {options.heads} heads of "
            f"{options.channels} channels, best of {options.turns} turns, dense attention (torch's) measured in the "
            f"same turns; joint: {TEXT} tokens of text behind the grid; spatial, temporal: the frames or places of one "
            "clip as a batch. Queries and keys are random: methods that choose by content choose at random. Errors: "
            "largest difference to the plain form of the same mask in float64, over the largest value there, up to "
            f"{JUDGED} tokens; that of gradients over those of queries, keys and values together. Backends that "
            "do not serve the device with gradients have no rows.",
            "",
            table(rows),
            "",
        ]
    )


def measured(place: Place, backends: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a place: dense attention's, and one for every mask and backend that serve it.

    Args:
        place: where.
        backends: names of the operator's.
        options: of the command.
    """
    site, batch = place.site(options.heads)
    noise = torch.Generator().manual_seed(0)
    shape = (batch, site.layout.length, options.heads, options.channels)
    exact = [torch.randn(shape, generator=noise, dtype=torch.float64) for _ in range(4)]
    given = [each.to(options.device, DTYPES[place.dtype]) for each in exact]
    calls: dict[tuple[str, str], Call] = {(DENSE, "torch"): _dense}
    shares: dict[tuple[str, str], float | None] = {(DENSE, "torch"): 1.0}
    truths: dict[str, list[torch.Tensor]] = {}
    judged = site.layout.length <= JUDGED
    if not judged:
        backends = [name for name in backends if name != REFERENCE]
    if judged:
        truths[DENSE] = _both(_dense, [each.float().double() for each in exact])
    for variant in MASKS:
        for backend, call, share in _served(variant, site, backends, given, options.device):
            key = (variant.describe(), backend)
            calls[key], shares[key] = call, share
            if judged and key[0] not in truths:
                plain = next(iter(_served(variant, site, [REFERENCE], exact[:4], "cpu")))[1]
                truths[key[0]] = _both(plain, [each.float().double() for each in exact])
    times = _times(calls, given, options.turns)
    rows = []
    for key, (forward, backward) in times.items():
        found = _both(calls[key], given) if judged else None
        errors = None if found is None else _errors(found, truths[key[0]])
        share, dense = shares[key], times[DENSE, "torch"]
        rows.append({
            "grid": place.grid, "tokens": site.layout.length, "role": place.role, "dtype": place.dtype, "mask": key[0],
            "backend": key[1], "pairs executed": "" if share is None else f"{share:.3f}",
            "forward ms": f"{1e3 * forward:.2f}", "speed": f"{dense[0] / forward:.2f}x",
            "with backward ms": f"{1e3 * backward:.2f}", "its speed": f"{dense[1] / backward:.2f}x",
            "error": f"{errors[0]:.1e}" if errors else "", "error of gradients": f"{errors[1]:.1e}" if errors else "",
        })  # fmt: skip
    return rows


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    made = torch.nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)))
    return made.transpose(1, 2)


def _served(
    variant: Variant, site: Any, backends: list[str], given: list[torch.Tensor], device: str
) -> Iterator[tuple[str, Call, float | None]]:
    """Backends that serve a mask at a site, with the call and the share of the pairs that is executed."""
    from genkit.attention import registry
    from genkit.attention.cache import PatchCache
    from genkit.errors import GenkitError

    method = registry.build(variant.method, variant.settings)
    if method.why_not(site) is not None:
        return
    for backend in backends:
        cache = PatchCache(backend)

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: Any = cache) -> torch.Tensor:
            return method.attend(q, k, v, site, cache)

        try:
            # With gradients first: a backend without them need not compile anything before it says so.
            if not _both(call, [each.to(device) for each in given]):
                return  # the method leaves such a call to the model
        except GenkitError:
            continue
        yield backend, call, method.density(site, cache).executed


def _both(call: Call, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients of queries, keys and values, float64 on the CPU; the last of ``given`` is the output's
    gradient. Empty where a method declines the call."""
    leaves = [each.clone().requires_grad_() for each in given[:3]]
    out = call(*leaves)
    if out is None:
        return []
    grads = torch.autograd.grad(out, leaves, given[3].to(out))
    return [each.detach().double().cpu() for each in (out, *grads)]


def _errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> tuple[float, float]:
    """Largest differences over the largest value: of the output, and of all gradients together, since those of queries
    and keys are 0 where a query sees one key."""
    far = [float((mine - its).abs().max()) for mine, its in zip(found, truth, strict=True)]
    large = [float(its.abs().max()) for its in truth]
    return far[0] / large[0], max(far[1:]) / max(large[1:])


def _times(
    calls: dict[tuple[str, str], Call], given: list[torch.Tensor], turns: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Seconds of the forward pass, and of both: the least of the turns behind a first one, which plans and compiles."""
    q, k, v, upstream = given
    best = {key: [float("inf"), float("inf")] for key in calls}
    for turn in range(turns + 1):
        for key, call in calls.items():
            leaves = [each.clone().requires_grad_() for each in (q, k, v)]
            with torch.no_grad():
                forward = _clock(lambda call=call: call(q, k, v), q.device)
            both = _clock(
                lambda call=call, leaves=leaves: torch.autograd.grad(call(*leaves), leaves, upstream), q.device
            )
            if turn:
                best[key] = [min(best[key][0], forward), min(best[key][1], both)]
    return {key: (forward, both) for key, (forward, both) in best.items()}


def _clock(call: Callable[[], Any], device: torch.device) -> float:
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    begun = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - begun
