"""What a patch and a watch cost beside a method: microseconds per attention call, against the model's own call.

The cost of a call is the time of an attention module under a patch whose method hands every call to the backend that
the model would have called, minus the time of the same module without a patch. Torch's own forward hooks, by which a
patch follows modules, are part of it. One module of a real model is called in turns of some hundred calls, unpatched
between every two patched turns. The least of many short calls is told beside the median: on a busy machine it is the
number that repeats. A watch (:class:`genkit.patching.Watch`, which comparing and tuning count with) is measured alike,
and told as a share of a denoising step of toy-video, whose calls and seconds are counted in the same run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table

OWN = "the module's own call"
WATCHED = "watched, without a patch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks seam``."""
    parser.add_argument("--calls", type=int, default=16000, help="calls of each kind (default 16000)")
    parser.add_argument("--runs", type=int, default=9, help="clips of four steps, for the share of a run (default 9)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    torch.set_num_threads(1)
    facts, rows, step = environment(), measure(options.calls), one_step(options.runs)
    watched = next(float(row["least"]) for row in rows if row["call"] == WATCHED)
    share = watched * 1e-6 * step["calls"] / step["seconds"]
    text = "\n".join(
        [
            "# The seam",
            "",
            machine_line(facts),
            f"Microseconds that a patch adds to a call of an attention module: its time under the patch minus its own "
            f"time, least and median of {options.calls} calls of each kind in interleaved turns. Self-attention of a "
            f"tiny Wan model, 24 tokens, one thread, no garbage collection. The method is a pass-through to the "
            f"model's own backend, so that only the seam is left. Two empty forward hooks, torch's part of it, are "
            f"measured by themselves.",
            "",
            table(rows),
            "",
            f"A denoising step of toy-video (25 frames of 128x128, bfloat16) makes {step['calls']:.0f} attention calls "
            f"in {step['seconds']:.3f} s of one core (least of {options.runs} clips); "
            f"watching them: {share:.2%} of it.",
            "",
        ]
    )
    values = {"environment": facts, "calls": options.calls, "rows": rows, "step": step, "watched share": share}
    report("seam", values, text, options.output)
    return 0


def pass_through() -> Any:
    """A method that gives every call to the backend that the model would have called."""
    from dataclasses import dataclass

    from genkit.attention.method import Density, Method
    from genkit.attention.site import ROLES
    from genkit.patching.interception import INTERCEPTION

    INTERCEPTION.hold()
    native = INTERCEPTION.original("native")
    INTERCEPTION.release()

    @dataclass(frozen=True)
    class PassThrough(Method):
        name = "pass_through"
        roles = ROLES
        needs_grid = False
        exact = True

        def attend(self, q, k, v, site, cache):
            return native(query=q, key=k, value=v)

        def density(self, site, cache):
            return Density(1.0, 1.0)

    return PassThrough()


def tiny_model() -> tuple[Any, dict[str, Any]]:
    """A small Wan model, and the arguments of one forward."""
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    args = {
        "hidden_states": torch.randn(1, 4, 2, 6, 8), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 16), "return_dict": False,
    }  # fmt: skip
    return model, args


@contextmanager
def _empty_hooks(module: Any) -> Any:
    before = module.register_forward_pre_hook(lambda *_: None)
    after = module.register_forward_hook(lambda *_: None, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def one_step(runs: int, steps: int = 4) -> dict[str, float]:
    """Attention calls of one denoising step of toy-video, and its seconds of processor time: the least of several
    clips."""
    import torch

    import genkit
    from genkit.patching import Watch

    pipeline, taken, calls = genkit.load("toy-video", "bfloat16", "cpu"), [], 0
    pipeline.set_progress_bar_config(disable=True)
    asked = {"height": 128, "width": 128, "num_frames": 25, "num_inference_steps": steps, "output_type": "latent"}
    for number in range(runs + 1):
        generator = torch.Generator().manual_seed(number)
        with Watch(pipeline) as watch:
            begun = time.process_time()
            pipeline("a red circle moves right on a blue background", generator=generator, **asked)
            taken.append((time.process_time() - begun) / steps)
            calls = watch.cost().calls
    return {"calls": calls / steps, "seconds": min(taken[1:])}


def measure(calls: int, turns: int = 40) -> list[dict[str, str]]:
    """Rows: what a patch adds to a call, served or outside of the schedule; below them the module's own call."""
    import torch

    import genkit
    from genkit.patching import Watch

    model, args = tiny_model()
    module, x, method = model.blocks[0].attn1, torch.randn(1, 24, 24), pass_through()

    def patched(schedule: Any) -> AbstractContextManager[Any]:
        return genkit.patch(model, method, schedule=schedule)

    @contextmanager
    def both() -> Any:
        with Watch(model), patched(None):
            yield

    kinds = {
        "served by the method": lambda: patched(None),
        "outside of the schedule": lambda: patched(genkit.Schedule(steps="1000:")),
        WATCHED: lambda: Watch(model),
        "served by the method and watched": both,
        "two empty forward hooks": lambda: _empty_hooks(module),
    }
    found: dict[str, list[float]] = {name: [] for name in (*kinds, OWN)}

    def several(name: str, count: int) -> None:
        model(**args)  # the call state, and what is built once
        taken = []
        for _ in range(count + 3):
            begun = time.perf_counter()
            module(x)
            taken.append((time.perf_counter() - begun) * 1e6)
        found[name] += taken[3:]

    gc.disable()
    try:
        with torch.no_grad():
            for _ in range(turns):
                for name, surroundings in kinds.items():
                    several(OWN, calls // turns // len(kinds))
                    with surroundings():
                        several(name, calls // turns)
    finally:
        gc.enable()
    own = found.pop(OWN)
    rows = [
        {"call": name, "least": f"{min(each) - min(own):.1f}",
         "median": f"{statistics.median(each) - statistics.median(own):.1f}"}
        for name, each in found.items()
    ]  # fmt: skip
    return [*rows, {"call": OWN, "least": f"{min(own):.1f}", "median": f"{statistics.median(own):.1f}"}]
