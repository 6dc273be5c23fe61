"""torch.compile with full graphs: one graph serves every step, schedule and counts stay true, and it is undone."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Declining, Full, Scaled

import genkit


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _compile(case: tiny.Tiny, backend="eager") -> torch.nn.Module:
    plain, case.model = case.model, torch.compile(case.model, backend=backend, fullgraph=True)
    return plain


@pytest.mark.parametrize("name", [*tiny.FAMILIES, "hunyuan_video_padded", "flux_kontext"])
def test_families(name):
    case = tiny.build(name)
    if name == "ltx2":  # one block has all six attentions, and two take twice as long to trace
        case.model.transformer_blocks = case.model.transformer_blocks[:1]
        case.calls //= 2
    with genkit.patch(case.model, Scaled()):
        expected = case.run()
    plain = _compile(case)
    with genkit.patch(plain, Scaled()) as handle:
        torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
        case.run()
        report = handle.report()
    assert report.ran == report.calls == 2 * case.calls and report.forwards == 2


@pytest.mark.parametrize("name", ["wan", "sd3"])
@pytest.mark.parametrize(
    "method",
    [
        genkit.BlockSelect(block=8, keep=2),
        genkit.BlockSelect(block=8, keep=2, tail=4),
        genkit.Pyramid(block=8, thresholds=(0.2, 0.3, 0.5, 0.6)),
    ],
    ids=lambda method: method.describe(),
)
def test_methods_that_choose_blocks(name, method):
    case = tiny.build(name)
    with genkit.patch(case.model, method):
        expected = case.run()
    plain = _compile(case)
    with genkit.patch(plain, method) as handle:
        torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
        assert handle.report().ran > 0


@pytest.mark.parametrize("name", ["wan", "sd3"])
def test_patched_after_compiling_and_restored(name):
    """Also while another model is patched, so that the pass-through is already there when the second patch comes."""
    case, other = tiny.build(name), tiny.build(name, seed=1)
    reference = case.run()
    with genkit.patch(case.model, Scaled()):
        expected = case.run()
    _compile(case)
    torch.testing.assert_close(case.run(), reference)
    with genkit.patch(other.model, Full()) as outer:
        torch.testing.assert_close(case.run(), reference)
        with genkit.patch(case.model, Scaled()) as handle:
            torch.testing.assert_close(case.run(), expected)
            assert handle.report().ran == case.calls
        torch.testing.assert_close(case.run(), reference)
        assert outer.report().ran == 0
    torch.testing.assert_close(case.run(), reference)


def test_one_graph_for_all_steps():
    """Steps, timesteps and the schedule change without a new graph; uncovered and declined calls are dense."""
    case = tiny.build("wan")
    reference = case.run()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    plain = _compile(case, backend)
    schedule = genkit.Schedule(steps="1:-1")
    with genkit.patch(plain, Scaled(), roles="self", schedule=schedule, total_steps=6) as handle:
        outs = [case.run(timestep=torch.tensor([999, 999]))]
        traced = len(graphs)
        assert traced <= 2  # the model's hook, which stands before its forward, and the model
        outs += [case.run(timestep=torch.tensor([t, t])) for t in (900, 800, 700, 600)]
        assert len(graphs) == traced
        report = handle.report()
    assert report.sites[0].steps == (1, 2, 3, 4) and report.outside == 3
    assert len({out.sum().item() for out in outs}) == 5
    with genkit.patch(plain, Declining()) as handle:
        torch.testing.assert_close(case.run(), reference)
        assert handle.report().declined == {"the method declined this call": case.calls}


def test_many_patches_of_one_compiled_model():
    """torch.compile keeps a handful of graphs per function; stale ones must not use them up."""
    case = tiny.build("sd3")
    case.model.transformer_blocks = case.model.transformer_blocks[:1]
    reference = case.run()
    plain = _compile(case)
    for count in range(1, 11):
        with genkit.patch(plain, Scaled(count / 10)) as handle:
            changed = case.run()
            assert handle.report().ran == 1
        assert torch.allclose(changed, reference, atol=1e-4) == (count == 10)
    torch.testing.assert_close(case.run(), reference)


def test_processors():
    case = tiny.build("wan")
    own = case.model.attn_processors
    with genkit.patch(case.model, Scaled()):
        expected = case.run()
    case.model.set_attn_processor(genkit.attn_processors(case.model, Scaled()))
    plain = _compile(case)
    torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
    assert plain.blocks[0].attn1.processor.handle.report().ran == case.calls
    plain.set_attn_processor(dict(own))


def test_real_method_and_regional_compilation():
    case = tiny.build("wan")
    method = genkit.Neighborhood(size=3)
    with genkit.patch(case.model, method, backend="reference"):
        expected = case.run()
    with genkit.patch(case.model, method, backend="reference") as handle:
        for block in case.model.blocks:
            block.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(case.run(), expected, atol=2e-5, rtol=2e-5)
        assert handle.report().ran == 3 and handle.report().density.computed < 0.7


def test_gradients_through_the_compiled_gate():
    case = tiny.build("wan")
    with genkit.patch(case.model, Scaled()):
        case.forward().square().sum().backward()
        expected = {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}
        case.model.zero_grad(set_to_none=True)
    plain = _compile(case, backend="aot_eager")
    with genkit.patch(plain, Scaled()) as handle:
        case.forward().square().sum().backward()
        assert handle.report().ran == case.calls
    assert expected
    for name, parameter in plain.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-3, rtol=1e-3)
