"""What a patch costs beside its method: microseconds per attention call, against the model's own call in the same run.

The method hands every call to the backend the model would have called, so that only the seam is left. One attention
module of a real model is called patched and unpatched, in turns of some hundred calls. The least of many short calls is
told beside the median: on a busy machine it is the only number that repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, machine_line, report, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks seam``."""
    parser.add_argument("--calls", type=int, default=4000, help="calls of each kind (default 4000)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    import torch

    torch.set_num_threads(1)
    facts, rows = environment(), measure(options.calls)
    text = "\n".join(
        [
            "# The seam",
            "",
            machine_line(facts),
            f"Microseconds that a patch adds to one call of an attention module, least and median of {options.calls} "
            f"calls; self-attention of a tiny Wan model, 24 tokens, one thread. The method is a pass-through to the "
            f"model's own backend.",
            "",
            table(rows),
            "",
        ]
    )
    report("seam", {"environment": facts, "calls": options.calls, "rows": rows}, text, options.output)
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


def measure(calls: int, turns: int = 20) -> list[dict[str, str]]:
    """Rows: what a patch adds to a call, served or outside of the schedule; below them the module's own call."""
    import torch

    import genkit

    model, args = tiny_model()
    module, x = model.blocks[0].attn1, torch.randn(1, 24, 24)
    schedules = {"served by the method": None, "outside of the schedule": genkit.Schedule(steps="1000:")}
    patched: dict[str, list[float]] = {name: [] for name in schedules}
    own: list[float] = []

    def several() -> list[float]:
        found = []
        for _ in range(calls // turns):
            begun = time.perf_counter()
            module(x)
            found.append((time.perf_counter() - begun) * 1e6)
        return found[3:]

    with torch.no_grad():
        for _ in range(turns):
            own += several()
            for name, schedule in schedules.items():
                with genkit.patch(model, pass_through(), schedule=schedule):
                    model(**args)  # the call state, and what is built once
                    patched[name] += several()
    rows = [
        {"call": name, "least": f"{min(each) - min(own):.1f}",
         "median": f"{statistics.median(each) - statistics.median(own):.1f}"}
        for name, each in patched.items()
    ]  # fmt: skip
    return [
        *rows,
        {"call": "the module's own call", "least": f"{min(own):.1f}", "median": f"{statistics.median(own):.1f}"},
    ]
