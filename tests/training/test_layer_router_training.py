"""Training the layer router: the loss of the share, decisions by seed, a tiny model that learns, the command's file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import genkit
from genkit.attention.layer_router import LayerRouter
from genkit.attention.registry import trained
from genkit.errors import UsageError
from genkit.training.data.world.clips import ClipSize, LatentPool
from genkit.training.engine.curriculum import Stage
from genkit.training.engine.memory import checkpoint_gradients
from genkit.training.tasks.layer_router import RouterTask
from genkit.training.tasks.layers import SPARSITY
from genkit.training.tasks.run import main
from genkit.training.toys.video.model import sizes

SIZE = ClipSize(5, 96, 96)
METHOD = LayerRouter(sparse="neighborhood size=1x3x3", untrained=True)


def task_of(folder, sparsity=SPARSITY):
    pipeline = genkit.load(str(folder), "float32", "cpu")
    pool = LatentPool(pipeline.vae, np.random.default_rng(0))
    task = RouterTask(pipeline, pool, METHOD, sparsity, stages=(Stage(0.0, sizes((5, 96, 96, 1.0))),))
    task.seed = 3
    return task


def test_the_loss_is_the_error_and_the_penalty_of_the_share(tiny_wan):
    task = task_of(tiny_wan)
    assert SPARSITY == 0.45
    batch = task.draw(SIZE, 8, np.random.default_rng(1))
    with torch.no_grad():
        assert float(task(batch)) == pytest.approx(
            0.45 + 0.45**2, abs=1e-6
        )  # all full: the dense model, nothing sparse
    assert task.probe() == {"sparse": 0.0}
    for each in task.weights.layers.values():
        each.biases[-1].data.zero_()
    loss = task(batch)
    assert float(loss.detach()) == float(task(batch).detach())  # the seed decides what is drawn
    draws = task.draws
    share = 1 - float(torch.stack(list(draws.decided.values())).detach().mean())
    assert (
        0 < share < 1 and len(draws.decided) == len(task.weights.layers) and draws.decided.keys() == draws.noise.keys()
    )
    slope = torch.autograd.grad(task(batch), task.push)[0]
    off = torch.tensor([abs(share - 0.45), (share - 0.45) ** 2])
    torch.testing.assert_close(slope, -off)  # ascent: an optimiser that lowers the loss raises both
    task.push.data = torch.tensor([2.0, 3.0])
    plain = float(loss.detach()) - float(off.sum())
    assert float(task(batch).detach()) == pytest.approx(plain + float(2 * off[0] + 3 * off[1]), rel=1e-5)
    task.patch.remove()


def test_gradients_reach_networks_and_multipliers_alone_and_the_same_recomputed(tiny_wan):
    task = task_of(tiny_wan)
    batch = task.draw(SIZE, 2, np.random.default_rng(1))
    for each in task.weights.layers.values():
        each.biases[-1].data.zero_()
        each.weights[-1].data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))

    def gradients():
        task.zero_grad()
        task(batch).backward()
        assert not any(parameter.grad is not None for parameter in task.pipeline.transformer.parameters())
        return {name: parameter.grad.clone() for name, parameter in task.named_parameters()}

    plain = gradients()
    assert all(grad.any() for grad in plain.values())
    assert {name for name in plain if not name.startswith("weights.")} == {"push"}
    assert checkpoint_gradients(task) == ["WanTransformer3DModel"]
    task.pipeline.transformer.train()
    again = gradients()
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(again[name], plain[name])
    task.patch.remove()


def test_a_model_learns_to_leave_calls_sparse_and_its_file_is_taken(tiny_wan, tmp_path):
    task = task_of(tiny_wan, 0.5)
    batch = task.draw(SIZE, 4, np.random.default_rng(1))
    optimizer = torch.optim.Adam(task.parameters(), lr=0.01)
    shares = []
    for number in range(40):
        task.seed = number
        optimizer.zero_grad()
        task(batch).backward()
        optimizer.step()
        shares.append(task.probe()["sparse"])
    assert np.mean(shares[:2]) < 0.1 and abs(np.mean(shares[-10:]) - 0.5) < 0.2
    assert bool((task.push > 1).all())  # the share was off, so both multipliers grew
    with torch.no_grad():
        task(batch)
    wanted = task.probe()["sparse"]
    found = task.predict(batch).detach()
    file = task.save(tmp_path / "layer_router.safetensors")
    task.patch.remove()
    method = trained("layer_router", file)
    assert method == LayerRouter(sparse=METHOD.sparse, weights=str(file))
    with genkit.patch(task.pipeline, method) as patch, torch.no_grad():
        torch.testing.assert_close(task.predict(batch), found)
        (line,) = [line for line in patch.report().remarks if "layer_router: full" in line]
    rows = len(batch.noisy) * len(patch.layers)
    assert f"in {round((1 - wanted) * rows)} of {rows} decisions" in line


def test_the_command_trains_and_writes_what_a_patch_takes(tiny_wan, tmp_path, capsys):
    command = ["layer_router", "--model", str(tiny_wan), "--folder", str(tmp_path), "--tokens", "100", "--steps", "2"]
    command += ["--attention-args", "sparse=neighborhood size=1x3x3", "--measure", "2", "--sample-minutes", "0.00001"]
    assert main("test", command) == 0
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["method"] == "layer_router" and facts["steps"] == 2
    probe = json.loads((tmp_path / "weights" / "probe.jsonl").read_text().splitlines()[0])
    assert {"sparse", "loss"} <= probe.keys()
    assert trained("layer_router", tmp_path / "layer_router.safetensors").sparse == METHOD.sparse
    capsys.readouterr()
    for name in ("weights=x", "untrained=true"):
        assert main("test", [*command[:5], "--attention-args", name]) == 2
        assert "the task's own business" in capsys.readouterr().err


def test_shares_out_of_range_are_refused(tiny_wan):
    for share in (0, 1.1, True, float("nan")):
        with pytest.raises(UsageError, match="--sparsity"):
            task_of(tiny_wan, share)
