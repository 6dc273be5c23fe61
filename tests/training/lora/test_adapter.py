"""Where a LoRA goes, how it begins, what it leaves of the model, and how it is saved."""

from __future__ import annotations

import pytest
import torch
from memory import MemorySamples, load, task_of
from torch import nn

from genkit.errors import UnsupportedError, UsageError
from genkit.lora.facts import Facts
from genkit.lora.pair import Pair
from genkit.training.lora.adapter import Adapter, AdapterConfig
from genkit.training.lora.files import lora_files
from genkit.training.lora.targets import find_targets

REGEX = r"blocks\.\d+\.attn[12]\.to_[qkv]"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_out, self.norm = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)]), nn.LayerNorm(4)


@pytest.fixture
def blocks():
    return nn.ModuleDict({"blocks": nn.ModuleList([Block() for _ in range(11)]), "conv": nn.Conv2d(4, 4, 3)})


@pytest.fixture
def pipeline(tiny_wan):
    return load(tiny_wan)


def test_names_ends_and_expressions_name_layers(blocks):
    def found(*wanted, excluded=(), default=None):
        return find_targets(blocks, wanted, excluded, default)

    assert found("to_q") == [f"blocks.{index}.to_q" for index in range(11)]
    assert found("blocks.1.to_q", "conv") == ["blocks.1.to_q", "conv"]
    assert found("1.to_q") == ["blocks.1.to_q"]  # not blocks.11
    assert found(r"blocks\.[02]\..*") == ["blocks.0.to_q", "blocks.0.to_out.0", "blocks.2.to_q", "blocks.2.to_out.0"]
    assert len(found("all-linear")) == 22 and "conv" not in found("all-linear")
    assert found("to_q", excluded=(r"blocks\.[1-9].*",)) == ["blocks.0.to_q"]
    assert found(default=r"blocks\.3\.to_q") == ["blocks.3.to_q"]


def test_names_of_no_layer_are_told_with_what_there_is(blocks):
    def refused(*wanted, kind=UsageError, **more):
        with pytest.raises(kind) as error:
            find_targets(blocks, wanted, **more)
        return str(error.value)

    assert "did you mean to_q" in refused("to_q", "to_qq") and "to_q (11), to_out.0 (11), conv (1)" in refused("to_qq")
    assert "names no layer" in refused("norm")  # there, but nothing that carries an adapter
    assert "names no layer" in refused(r"block\.\d+")
    assert "nor a regular expression" in refused("to_(q")
    assert "leaves nothing" in refused("to_q", excluded=["all-linear"])
    assert "names no layer" in refused("to_q", excluded=["to_k"])
    assert "no default layers" in refused(kind=UnsupportedError)


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(rank=2),
        AdapterConfig(rank=2, init="gaussian", alpha=1),
        AdapterConfig(rank=2, kind="dora"),
        AdapterConfig(rank=4, rslora=True),
        AdapterConfig(rank=2, kind="lokr"),
        AdapterConfig(rank=2, targets=("all-linear",)),
    ],
    ids=["kaiming", "gaussian", "dora", "rslora", "lokr", "all"],
)
def test_nothing_changes_before_the_first_step_and_the_file_is_what_was_trained(tiny_wan, pipeline, tmp_path, config):
    batch = MemorySamples().batch(0)
    level, draws = torch.tensor([0.3, 0.9]), lambda: [torch.Generator().manual_seed(number) for number in (1, 2)]
    base = task_of(load(tiny_wan), AdapterConfig(rank=1))
    with base.adapter.off():
        wanted = base.errors(batch, level, draws())["video"]
    before = torch.get_rng_state()
    task = task_of(pipeline, config)
    assert torch.equal(before, torch.get_rng_state())
    start = task.errors(batch, level, draws())["video"]
    # The norms of DoRA and the Kronecker products of LoKr are computed anew, rounded once more.
    tolerance = 0 if config.kind == "lora" else 1e-6
    assert torch.allclose(start, wanted, atol=tolerance, rtol=tolerance)
    assert all(value.dtype == torch.float32 for value in task.adapter.parameters.values())
    trained = {name for name, value in pipeline.transformer.named_parameters() if value.requires_grad}
    assert trained == set(task.adapter.parameters) and not any("base_layer" in name for name in trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in task.adapter.parameters.values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    changed = task.errors(batch, level, draws())["video"]
    assert not torch.allclose(changed, wanted, atol=1e-4)
    lora_files("transformer", task.adapter, Facts())(tmp_path)
    stock = load(tiny_wan)
    stock.load_lora_weights(str(tmp_path))
    other = task_of(load(tiny_wan), AdapterConfig(rank=1))
    other.network = stock.transformer.eval()
    assert torch.allclose(other.errors(batch, level, draws())["video"], changed, atol=1e-5)


def test_ranks_and_alphas_by_pattern(pipeline):
    config = AdapterConfig(rank=2, targets=(REGEX,), ranks={"to_v": 5, r".*\.0\.attn1\.to_q": 3}, alphas={"to_k": 7.0})
    adapter = Adapter(pipeline.transformer, config)
    pairs = adapter.pairs()
    assert pairs["blocks.1.attn2.to_v"].rank == 5 and pairs["blocks.1.attn2.to_v"].scale == pytest.approx(1)
    assert pairs["blocks.0.attn1.to_q"].rank == 3 and pairs["blocks.1.attn1.to_q"].rank == 2
    assert pairs["blocks.0.attn1.to_k"].scale == pytest.approx(3.5)
    adapter.remove()
    with pytest.raises(UsageError, match="rank_pattern: 'to_w' fits none .*did you mean to_v"):
        Adapter(pipeline.transformer, AdapterConfig(targets=(REGEX,), ranks={"to_w": 5}))
    assert not any("lora" in name for name, _ in pipeline.transformer.named_parameters())


def test_a_run_may_begin_with_a_trained_lora(pipeline):
    adapter = Adapter(pipeline.transformer, AdapterConfig(rank=2, alpha=1, targets=(REGEX,)))
    given = {
        path: Pair(down=torch.randn(2, pair.down.shape[1]), up=torch.randn(pair.up.shape[0], 2), alpha=6.0)
        for path, pair in adapter.pairs().items()
    }
    adapter.begin_with(given, "x.safetensors")
    for path, pair in adapter.pairs().items():
        wanted = 3 * given[path].up @ given[path].down
        assert torch.allclose(pair.scale * pair.up @ pair.down, wanted, atol=1e-5)
    first = next(iter(given))
    with pytest.raises(UsageError, match="has rank 3, here 2"):
        adapter.begin_with({**given, first: Pair(down=torch.zeros(3, 32), up=torch.zeros(32, 3))}, "x")
    with pytest.raises(UsageError, match="is not in the file"):
        adapter.begin_with({path: pair for path, pair in given.items() if path != first}, "x")


def test_a_second_adapter_and_a_rank_beyond_lokr_are_refused(pipeline):
    with pytest.raises(UsageError, match=r"rank: 400 is too large for LoKr at blocks\.0\.attn1\.to_q"):
        Adapter(pipeline.transformer, AdapterConfig(rank=400, kind="lokr", targets=(REGEX,)))
    Adapter(pipeline.transformer, AdapterConfig(targets=(REGEX,)))
    with pytest.raises(UsageError, match="has an adapter named 'default' already"):
        Adapter(pipeline.transformer, AdapterConfig(targets=(REGEX,)))
