"""FlexAttention with TMA and on FlashAttention 4: what is asked of torch, whether lists are used, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from genkit.errors import UnsupportedError
from genkit.kernels import BlockPlan, backends, block_sparse_attention, why_not
from genkit.kernels.block_sparse.impl import flex, flex_flash, flex_tma


def blocks(block_q=256, block_k=128, whole=False):
    mask = torch.zeros(1, 1, 1024 // block_q, 1024 // block_k, dtype=torch.bool)
    mask[..., 0] = True
    return BlockPlan.from_dense_blocks(mask | whole, 1024, 1024, block_q=block_q, block_k=block_k)


def on_gpu(monkeypatch, major, dim=64, dtype=torch.bfloat16):
    """q, k, v of a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
    monkeypatch.setattr(flex_flash, "_installed", lambda: True)
    with FakeTensorMode():
        return [torch.empty(1, 1024, 2, dim, device="cuda", dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("whole", [False, True])
def test_the_lists_of_a_plan_are_never_skipped(whole):
    """Torch runs FlashAttention dense where the mask function has nothing but its four places in it."""
    mask = blocks(whole=whole).to_block_mask()
    place = torch.zeros(1, dtype=torch.int32)
    graph = make_fx(mask.mask_mod, tracing_mode="real")(*[place] * 4).graph
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    assert result.target is not torch.ops.aten.full.default
    assert any(node.op == "get_attr" for node in graph.nodes)  # tables, which become further inputs when compiled


@pytest.mark.parametrize("variant", [flex, flex_tma, flex_flash])
def test_what_torch_is_asked(variant, monkeypatch):
    asked = []

    def record(q, k, v, **options):
        asked.append(options["kernel_options"])
        return torch.zeros_like(q), SimpleNamespace(lse=q.new_zeros(q.shape[:3]))

    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", record)
    q = torch.randn(1, 1024, 2, 16)
    variant.forward(q, q, q, blocks(), 1.0, ())
    assert asked == [{flex: None, flex_tma: {"USE_TMA": True}, flex_flash: {"BACKEND": "FLASH"}}[variant]]


def test_only_by_name():
    names = backends()
    assert names.index("flex_flash") > names.index("reference") and "flex_tma" in names
    q = torch.randn(1, 1024, 2, 16)
    for name, text in (("flex_tma", "compute capability 9.0"), ("flex_flash", "NVIDIA GPUs")):
        with pytest.raises(UnsupportedError, match=text):
            block_sparse_attention(q, q, q, blocks(), backend=name)
        assert text in why_not(name, q, q, q, blocks())


@pytest.mark.parametrize(
    ("major", "sizes", "dim", "text"),
    [
        (9, (128, 64), 64, None),
        (9, (256, 128), 256, None),
        (9, (128, 256), 64, "keys in multiples of 16 up to 128"),
        (9, (32, 128), 64, "queries in multiples of 64"),
        (10, (256, 128), 64, None),
        (10, (256, 256), 64, None),
        (10, (128, 128), 64, "queries in multiples of 256"),
        (10, (256, 128), 256, "up to 128, here 256"),
        (9, (128, 64), 68, "multiples of 8"),
        (8, (256, 128), 64, "compute capability 9.x, 10.x, 11.x only"),
    ],
)
def test_what_flash_takes(major, sizes, dim, text, monkeypatch):
    reason = flex_flash.why_not(*on_gpu(monkeypatch, major, dim), blocks(*sizes))
    assert (reason is None) == (text is None) and (text is None or text in reason)


def test_flash_wants_its_package_and_half_precision(monkeypatch):
    wide = on_gpu(monkeypatch, 9, dtype=torch.float32)
    assert "float32" in flex_flash.why_not(*wide, blocks())
    monkeypatch.setattr(flex_flash, "_installed", lambda: False)
    assert "flash-attn-4" in flex_flash.why_not(*wide, blocks())


def test_tma_wants_aligned_rows(monkeypatch):
    q, k, v = on_gpu(monkeypatch, 9)
    assert flex_tma.why_not(q, k, v, blocks()) is None
    odd = q.as_strided((1, 1000, 2, 64), (132_000, 132, 66, 1))
    late = q.as_strided((1, 1000, 2, 64), (128_000, 128, 64, 1), storage_offset=1)
    assert "k of shape" in flex_tma.why_not(q, odd, v, blocks())
    assert "v of shape" in flex_tma.why_not(q, k, late, blocks())
    assert "compute capability 9.0" in flex_tma.why_not(*on_gpu(monkeypatch, 8), blocks())
