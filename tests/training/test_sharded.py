"""Weights in shards: two processes with FSDP2 on CPUs train, save and resume what one process would."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.engine.loop import LoopConfig, train

COMMON = """
import torch
from torch import nn
from genkit.training.engine.optim import muon_adamw

def build():
    torch.manual_seed(0)
    # Seven rows: the shards of two processes differ in size. The first layer is frozen.
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1))
    model[0].requires_grad_(False)
    return model

def rows(number, part):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2 * number + part))
    return x, x.sum(1, keepdim=True)

def optimizer_of(model, kind):
    if kind == "muon":
        return muon_adamw(model.named_parameters(), lr=0.02, adam_names=("4.",), weight_decay=0.01)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.02)
"""
CHILD = (
    COMMON
    + """
import sys
from pathlib import Path
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from genkit.training.engine.loop import LoopConfig, process_rank, train

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
looks = []

def loss_at(module, number, progress):
    x, y = rows(number, process_rank())
    return (module(x) - y).square().mean(), {}

def validate(module, step):
    looks.append(module(rows(0, 0)[0]).sum().item())

def run(name, steps, **more):
    model = build()
    for layer in (model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    config = LoopConfig(folder / name, lr=0.02, steps=steps, warmup=1, lr_scheduler="constant", ema_decay=0.9, **more)
    train(model, optimizer_of(model, kind), loss_at, config, validate)
    assert model[2].weight.to_local().shape[0] in (3, 4)

for kind in ("adamw", "muon"):
    folder = Path(sys.argv[1]) / kind
    run("whole", 6, validation_seconds=1e-9)
    run("broken", 3)
    run("broken", 6)
    run("accumulated", 3, gradient_accumulation_steps=2)
assert len(looks) == 12 and len(set(looks)) == 12
dist.destroy_process_group()
"""
)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder of two processes' runs with either optimizer."""
    folder = tmp_path_factory.mktemp("sharded")
    script = folder / "child.py"
    script.write_text(CHILD)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_shards_are_trained_saved_and_resumed_as_one(sharded, tmp_path, kind):
    common: dict = {}
    exec(COMMON, common)

    def joint(module: nn.Module, number: int, progress: float):
        losses = [(module(x) - y).square().mean() for x, y in (common["rows"](number, part) for part in (0, 1))]
        return sum(losses) / 2, {}

    def alone(name: str, steps: int, **more) -> dict:
        model = common["build"]()
        config = LoopConfig(
            tmp_path / name, lr=0.02, steps=steps, warmup=1, lr_scheduler="constant", ema_decay=0.9, **more
        )
        train(model, common["optimizer_of"](model, kind), joint, config)
        return load_checkpoint(tmp_path / name / "checkpoint.pt")

    found = {
        name: load_checkpoint(sharded / kind / name / "checkpoint.pt") for name in ("whole", "broken", "accumulated")
    }
    assert found["whole"]["module"].keys() == {"2.weight", "2.bias", "4.weight", "4.bias"}
    for part in ("module", "ema"):
        for name, value in found["whole"][part].items():
            assert torch.equal(value, found["broken"][part][name])
    for name, steps, more in (("whole", 6, {}), ("accumulated", 3, {"gradient_accumulation_steps": 2})):
        single = alone(f"single-{name}", steps, **more)
        for part in ("module", "ema"):
            for key, value in single[part].items():
                assert torch.allclose(found[name][part][key], value, atol=1e-5), (name, part, key)
        moments = zip(*(state["optimizer"]["state"].items() for state in (single, found[name])), strict=True)
        for (_, one), (_, two) in moments:
            assert one.keys() == two.keys()
            assert all(torch.allclose(torch.as_tensor(one[k]), torch.as_tensor(two[k]), atol=1e-5) for k in one)
    # One process goes on where two with shards stopped.
    with pytest.warns(UserWarning, match=r"written by 2 process\(es\), this run has 1"):
        (tmp_path / "on").mkdir()
        (tmp_path / "on" / "checkpoint.pt").write_bytes((sharded / kind / "broken" / "checkpoint.pt").read_bytes())
        on = alone("on", 8)
    expected = alone("single-on", 8)
    assert all(torch.allclose(on["module"][key], value, atol=1e-5) for key, value in expected["module"].items())
