"""Under torch.autocast every method of every family runs, in the dtype that the model's own attention would have."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Full, Recorder

import genkit
from genkit.attention.registry import method_class
from genkit.families.lookup import family_of
from genkit.patching.matrix import matrix

VARIANT = {family_of(tiny.build(name).model).name: name for name in tiny.FAMILIES} | {
    "SD3": "sd35", "UNet2DCondition": "unet_added_keys",
}  # fmt: skip
#: Families of one form of attention are alike here; ``tests/families`` has every one of them without autocast.
CELLS = [cell for cell in matrix() if cell.fits and cell.family in VARIANT]
#: Methods that are refused without trained weights, as one begins to train them.
UNTRAINED = {"mixture_of_heads": {"untrained": True}, "layer_router": {"untrained": True}}


def _run(case):
    with torch.autocast("cpu", torch.bfloat16):
        return case.run()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_methods_get_what_the_models_own_attention_would_see(tiny_model, name):
    case = tiny_model(name)
    own = _run(case)
    dtypes = set()

    class Watching(Full):
        def attend(self, q, k, v, site, cache):
            assert not torch.is_autocast_enabled("cpu"), "autocast would round what a method computes in float32"
            dtypes.add((q.dtype, k.dtype, v.dtype))
            return super().attend(q.float(), k.float(), v.float(), site, cache).to(q.dtype)

    with genkit.patch(case.model, Watching()) as handle:
        out = _run(case)
        assert handle.report().ran == case.calls
    assert dtypes == {(torch.bfloat16,) * 3} and out.dtype == own.dtype
    # bfloat16 has 8 bits; a few layers of rounding in another order.
    assert (out.float() - own.float()).norm() <= 0.05 * own.float().norm()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.row}-{cell.family}")
def test_every_method_on_every_family(cell, tiny_model):
    case = tiny_model(VARIANT[cell.family])
    with genkit.patch(case.model, cell.row.build(**UNTRAINED.get(cell.row.method, {}))) as handle, torch.no_grad():
        _run(case)
        report = handle.report()
    assert report.calls and set(report.declined) <= {method_class(cell.row.method).declines} or report.ran


def test_compiled_under_autocast():
    torch._dynamo.reset()
    case = tiny.build("qwen_image")
    recorder = Recorder()
    with genkit.patch(case.model, Full()):
        expected = _run(case)
    plain, case.model = case.model, torch.compile(case.model, backend="eager", fullgraph=True)
    with genkit.patch(plain, recorder):
        out = _run(case)
    assert {keys.dtype for _, keys in recorder.seen} == {torch.bfloat16}
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    torch._dynamo.reset()


def test_double_precision_stays():
    case = tiny.build("wan")
    seen = Recorder()
    q = torch.randn(1, 4, 2, 12, dtype=torch.float64)
    from genkit.patching.patched_layer import _as_autocast

    with torch.autocast("cpu", torch.bfloat16):
        assert _as_autocast(q)[0].dtype == torch.float64 and _as_autocast(q.float())[0].dtype == torch.bfloat16
    assert _as_autocast(q.float())[0].dtype == torch.float32
    with genkit.patch(case.model, seen):
        case.run()
    assert {keys.dtype for _, keys in seen.seen} == {torch.float32}
