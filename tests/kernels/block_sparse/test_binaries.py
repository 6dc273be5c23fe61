"""Plans of any width run one binary of each kernel: counted by compiling, which needs no device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COUNT = """
import json, torch
from tests.aot.driver import pretend
pretend("sm_90")
from genkit.kernels import BlockPlan
from genkit.kernels.block_lists import Budget, Kept
from genkit.kernels.block_sparse.impl.triton import backward_kernels, forward_kernel, launch
from genkit.kernels.block_sparse.impl.triton.plan_tables import translate
from genkit.kernels.block_sparse.impl.triton.tile_sizes import Tile
from genkit.kernels.channels import head_parts

q = torch.zeros(1, 4096, 2, 16, dtype=torch.float16)
row, tile = torch.zeros(1, 2, 4096), Tile(16, 16, 1, 1)
scores, kept = torch.randn(1, 2, 64, 128), Kept.diagonal(4096, 4096, 64, 32)
widths = set()
for keep in (1, 3, 17, 40, 77, 128):
    plan = BlockPlan.from_scores(scores, Budget(keep=keep), kept, 4096, 4096, block_q=64, block_k=32)
    widths.add(plan.full_index.shape[-1])
    rows, columns = translate(plan, False), translate(plan, True)
    inputs, info = launch.Inputs.of(q, q, q, q, parts=head_parts(q.shape[-1])), launch.Rows.empty(q, rows)
    launch.forward_launch(inputs, q, row, rows, 0.1, tile).compile()
    launch.dq_launch(inputs, info, q, None, rows, 0.1, tile).compile()
    launch.dkv_launch(inputs, info, q, q, None, columns, 0.1, tile).compile()
kernels = forward_kernel.forward_kernel, backward_kernels.dq_kernel, backward_kernels.dkv_kernel
print(json.dumps([len(widths), *(sum(len(c[0]) for c in k.device_caches.values()) for k in kernels)]))
"""


def test_plans_of_any_width_run_one_binary_of_each_kernel():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [5, 1, 1, 1]
