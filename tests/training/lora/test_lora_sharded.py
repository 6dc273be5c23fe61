"""A LoRA with a patch in shards: two processes with FSDP2 on CPUs train, save and export what one process would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import allclose

from genkit.lora.files import NAMED
from genkit.training.engine.checkpoint import load_checkpoint

CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
import torch.distributed as dist
from memory import MemorySamples, load, task_of
from genkit.lora.facts import Facts
from genkit.pipelines.attention import Attention
from genkit.pipelines.settings import AttentionSettings
from genkit.training.engine.keep import Numbered
from genkit.training.engine.loop import LoopConfig, process_count, process_rank, train
from genkit.training.lora.attention import put_in
from genkit.training.lora.files import lora_files

task, folder = task_of(load(sys.argv[1])), Path(sys.argv[2])
settings = AttentionSettings(attention="neighborhood", attention_args={"size": "1x3x3"})
handle, _, _ = put_in(task.network, Attention.of(settings), False)
if process_count() > 1:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for block in task.network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
samples = MemorySamples((2 // process_count(),), (4, 3, 8, 8), processes=process_count())

def loss_at(wrapped, number, progress):
    return wrapped(samples.batch(number, process_rank()), number, process_rank())

trained = [value for value in task.parameters() if value.requires_grad]
export = lambda step: lora_files("transformer", task.adapter, Facts(steps=step))
for steps in (2, 4):
    keep = Numbered(folder, "latest", export=export)
    paces = {"warmup": 1, "lr_scheduler": "constant", "ema_decay": 0.5, "max_grad_norm": 1e9}
    config = LoopConfig(folder, lr=0.5, steps=steps, **paces)
    train(task, torch.optim.SGD(trained, 0.5), loss_at, config, keep=keep)
report = handle.report()
assert report.ran and not report.declined, report
if process_count() > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_sharded_lora_under_a_patch_is_that_of_one_process(tiny_wan, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = {}
    for name, start in (("two", launch), ("one", [])):
        (tmp_path / name).mkdir()
        rest = [str(script), str(tiny_wan), str(tmp_path / name), str(Path(__file__).parent)]
        done = subprocess.run([sys.executable, *start, *rest], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        state = load_checkpoint(tmp_path / name / "checkpoint-4" / "trainer.pt")
        found[name] = {**state["module"], **{f"ema {key}": value for key, value in state["ema"].items()}}
        found[name] |= load_file(tmp_path / name / "checkpoint-4" / NAMED)
    assert found["two"].keys() == found["one"].keys()
    for key, value in found["one"].items():
        assert allclose(found["two"][key], value, atol=1e-6), key
    assert max(float(value.abs().max()) for key, value in found["one"].items() if "lora_B" in key) > 1e-3
