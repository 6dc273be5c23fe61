"""One of two processes that share a model's sequence by Diffusers' context parallelism; run by test_context_parallel.

Arguments: rank, folder. Writes what it found to ``RANK.json`` in the folder.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import tiny
import torch
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from gate_methods import Full

import genkit

RANK, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
Schedule = genkit.Schedule
NEAR = genkit.Neighborhood(size=(1, 3, 3))
FOUND: dict[str, dict] = {}


def wan() -> tiny.Tiny:
    """Wan with four heads; 48 tokens in 3 frames."""
    from diffusers import WanTransformer3DModel

    args = {**tiny._wan_args(), "hidden_states": torch.randn(2, 4, 3, 8, 8)}
    model = WanTransformer3DModel(**tiny._wan(num_attention_heads=4))
    return tiny.Tiny(model, args, (3, 4, 4), 0, {"self": 3, "cross": 3}, 6)


def flux() -> tiny.Tiny:
    """Flux, whose text and picture are split by themselves."""
    case = tiny._BUILDERS["flux"]()
    text = 6
    case.args["encoder_hidden_states"] = torch.randn(2, text, case.args["encoder_hidden_states"].shape[-1])
    case.args["txt_ids"] = torch.zeros(text, 3)
    return case


def built(make) -> tiny.Tiny:
    torch.manual_seed(0)
    case = make()
    for parameter in case.model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    case.model.eval()
    return case


def parallel(make, **config) -> tiny.Tiny:
    case = built(make)
    case.model.enable_parallelism(config=ContextParallelConfig(**config))
    return case


def compare(name: str, make, method, **more) -> None:
    """The same patched forward alone and shared."""
    alone, shared = built(make), parallel(make, ulysses_degree=2)
    with genkit.patch(alone.model, method, **more) as patch:
        wanted, told = alone.run(), patch.report()
    own = shared.run()
    with genkit.patch(shared.model, method, **more) as patch:
        out, report = shared.run(), patch.report()
    FOUND[name] = {
        "error": float((out - wanted).abs().max()), "acts": float((own - wanted).abs().max()),
        "own": float((own - alone.run()).abs().max()), "ran": report.ran, "outside": report.outside,
        "declined": dict(report.declined), "alone": told.ran, "work": [told.work, report.work],
        "restored": bool(torch.equal(shared.run(), own)),
    }  # fmt: skip


def gradients(make, **more) -> torch.Tensor:
    """Of a loss on the output, with respect to one projection to queries; with full attention through a patch."""
    case = parallel(make, ulysses_degree=2)
    with genkit.patch(case.model, Full(), roles="self") if more.get("patched") else nullcontext():
        case.forward().square().sum().backward()
    return case.model.blocks[1].attn1.to_q.weight.grad


def _native_with_lse(ctx, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse, **rest):
    """Attention with its log-sum-exp, which ring attention asks for and Diffusers' backend for CPUs does not give."""
    logits = torch.einsum("bqhd,bkhd->bqhk", query, key) * (scale or query.shape[-1] ** -0.5)
    out = torch.einsum("bqhk,bkhd->bqhd", logits.softmax(-1), value)
    return (out, logits.logsumexp(-1)) if return_lse else out


def main() -> None:
    torch.set_num_threads(1)
    # Diffusers asks torch for the accelerator's devices and divides by their number; a CPU has none.
    torch.accelerator.device_count = lambda: 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{FOLDER / 'meet'}", rank=RANK, world_size=2)
    for method in (NEAR, genkit.MixtureOfBlock(), genkit.ShiftedGroups(group=1), genkit.Shards(block=8), Full()):
        compare(f"wan {method.name}", wan, method, roles="self")
    compare("wan two heads", wan, genkit.ShiftedGroups(group=1), roles="self", schedule=Schedule(heads="0:2"))
    compare("wan three heads", wan, NEAR, roles="self", schedule=Schedule(heads="1:4"))
    compare("wan agent", wan, genkit.Agent(), roles="self")
    compare("wan cross", wan, Full(), roles="cross")
    compare("flux neighborhood", flux, NEAR)
    plain, patched = gradients(wan), gradients(wan, patched=True)
    FOUND["gradients"] = {"error": float((plain - patched).abs().max()), "size": float(plain.abs().max())}
    attention_dispatch._native_attention_forward_op = _native_with_lse
    alone = built(wan).run()
    for name, config in (("ring", {"ring_degree": 2}), ("anything", {"ulysses_degree": 2, "ulysses_anything": True})):
        case = parallel(wan, **config)
        own = case.run()
        with genkit.patch(case.model, NEAR, roles="self") as patch:
            FOUND[name] = {"same": bool(torch.equal(case.run(), own)), "declined": dict(patch.report().declined),
                           "own": float((own - alone).abs().max())}  # fmt: skip
    (FOLDER / f"{RANK}.json").write_text(json.dumps(FOUND, indent=1))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
