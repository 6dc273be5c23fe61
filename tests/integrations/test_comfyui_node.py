"""The node for ComfyUI, against its documented calls: what is served, what is not and that it says so."""

from __future__ import annotations

import ast
import logging
import sys
import tomllib
from pathlib import Path

import fake_comfyui as fake
import pytest
import torch
from comfyui_node import FOLDER, load, patched

from genkit.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def comfy(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "genkit.comfyui")
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def clip(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VIDEO = clip(2, 16, 3, 5, 7)
PICTURE = clip(2, 16, 6, 9)
TEXT = clip(2, 7, 16, seed=2)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_full_windows_are_the_model_and_small_ones_are_not(caplog):
    for model, x, more in (
        (fake.patcher(fake.WanModel()), VIDEO, {"text": TEXT}),
        (fake.patcher(fake.Flux()), PICTURE, {"text": TEXT, "ref_latents": [clip(2, 16, 4, 4), clip(2, 16, 2, 5)]}),
        (fake.patcher(fake.Flux()), PICTURE, {"text": TEXT}),
        (fake.patcher(fake.UNetModel()), PICTURE, {}),
    ):
        plain = model.run(x, **more)
        torch.testing.assert_close(patched(model, arguments="size=all").run(x, **more), plain)
        for method, arguments in (("neighborhood", "size=1x3x3"), ("mixture_of_block", "keep=0.25,box=1x2x2")):
            out = patched(model, method, arguments).run(x, **more)
            assert (out - plain).abs().max() > 0.01 * plain.abs().max()
        assert torch.equal(model.run(x, **more), plain)
        assert model.model_options == {"transformer_options": {}}  # nothing was changed in place
    assert not [line for line in said(caplog) if "own attention" in line]


def test_text_and_references_stay_dense():
    """Rows outside the grid see everything: their output in the first block is the model's own."""
    model = fake.patcher(fake.Flux())
    seen = []

    def note(func, *args, **kwargs):
        seen.append(func(*args, **kwargs))
        return seen[-1]

    model.model_options["transformer_options"]["optimized_attention_override"] = note
    more = {"text": TEXT, "ref_latents": [clip(2, 16, 4, 4)]}
    model.run(PICTURE, **more)
    own, out = seen[0], []
    sparse = patched(model)
    override = sparse.model_options["transformer_options"]["optimized_attention_override"]

    def keep(func, *args, **kwargs):
        out.append(override(func, *args, **kwargs))
        return out[-1]

    sparse.model_options["transformer_options"]["optimized_attention_override"] = keep
    sparse.run(PICTURE, **more)
    torch.testing.assert_close(out[0][:, :7], own[:, :7])
    torch.testing.assert_close(out[0][:, 7 + 54 :], own[:, 7 + 54 :])
    assert not torch.allclose(out[0][:, 7 : 7 + 54], own[:, 7 : 7 + 54], atol=1e-3)


@pytest.mark.parametrize(("start", "end", "sigma", "runs"), [
    (0.0, 1.0, 1.0, True), (0.2, 0.8, 0.81, False), (0.2, 0.8, 0.79, True), (0.2, 0.8, 0.21, True),
    (0.2, 0.8, 0.19, False), (0.5, 0.5, 0.4, False),
])  # fmt: skip
def test_only_between_start_and_end(start, end, sigma, runs):
    model = fake.patcher(fake.WanModel())
    out = patched(model, start=start, end=end).run(VIDEO, sigma, TEXT)
    assert torch.equal(out, model.run(VIDEO, sigma, TEXT)) != runs


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(("dense", "served"), [("", 4), ("0:", 0), ("0,-1", 2), ("1:3", 2), ("-1", 3)])
def test_dense_blocks_by_number(tells, dense, served, caplog):
    model = fake.patcher(fake.Flux())
    model.model.diffusion_model.tells = tells
    plain = model.run(PICTURE, text=TEXT)
    out = patched(model, dense=dense).run(PICTURE, text=TEXT)
    if served:
        assert f"ran in {served} of 4 attention calls" in said(caplog)[0] and not torch.equal(out, plain)
    else:
        assert torch.equal(out, plain)


def test_a_block_number_is_that_block():
    """With all but one block dense, the output is that of a model whose other blocks are the model's own."""
    model = fake.patcher(fake.Flux())
    outs = [patched(model, dense=dense).run(PICTURE, text=TEXT) for dense in ("1:", "0,2:", "0:2,3", "0:3")]
    for tells in (True, False):
        model.model.diffusion_model.tells = tells
        again = [patched(model, dense=dense).run(PICTURE, text=TEXT) for dense in ("1:", "0,2:", "0:2,3", "0:3")]
        assert all(torch.equal(a, b) for a, b in zip(outs, again, strict=True))
    assert len({float(out.sum()) for out in outs}) == 4


def test_wrong_settings_are_errors():
    model = fake.patcher(fake.WanModel())
    for changes, message in (
        ({"dense": "5"}, "there are 3 blocks"),
        ({"dense": "first"}, "dense_blocks"),
        ({"start": 0.8, "end": 0.2}, "start_percent, end_percent"),
        ({"arguments": "siez=3"}, "size"),
        ({"arguments": "3"}, "key=value"),
        ({"method": "neighbourhood"}, "neighborhood"),
    ):
        with pytest.raises(UsageError, match=message):
            patched(model, **changes)


def test_hidden_keys_are_hidden_and_other_masks_are_declined(caplog):
    model = fake.patcher(fake.Flux())
    keys = torch.ones(2, 1, 1, 61, dtype=torch.bool)
    keys[0, :, :, 4:7] = False
    added = torch.zeros(2, 1, 61).masked_fill(~keys[:, 0], torch.finfo(torch.float32).min)
    for mask in (keys, added):
        plain = model.run(PICTURE, text=TEXT, attention_mask=mask)
        assert not torch.allclose(plain, model.run(PICTURE, text=TEXT), atol=1e-3)
        torch.testing.assert_close(
            patched(model, arguments="size=all").run(PICTURE, text=TEXT, attention_mask=mask), plain
        )
        assert not torch.allclose(patched(model).run(PICTURE, text=TEXT, attention_mask=mask), plain, atol=1e-3)
    assert not [line for line in said(caplog) if "own attention" in line]
    causal = torch.ones(61, 61, dtype=torch.bool).tril()
    for mask, reason in ((causal, "differs between queries"), (clip(1, 1, 61), "adds numbers")):
        patch = patched(model)
        out = patch.run(PICTURE, text=TEXT, attention_mask=mask)
        assert torch.equal(out, model.run(PICTURE, text=TEXT, attention_mask=mask))
        patch.run(PICTURE, text=TEXT, attention_mask=mask)
        assert len([line for line in said(caplog) if reason in line]) == 1  # said once


def test_every_form_of_the_call():
    model = fake.patcher(fake.WanModel())
    form = model.model.diffusion_model.form
    for more in ({}, {"skip_reshape": True}, {"skip_reshape": True, "skip_output_reshape": True}, {"scale": 0.7}):
        form.clear()
        form.update(more, attn_precision=torch.float32)
        plain = model.run(VIDEO, text=TEXT)
        torch.testing.assert_close(patched(model, arguments="size=all").run(VIDEO, text=TEXT), plain)
        assert not torch.allclose(patched(model).run(VIDEO, text=TEXT), plain, atol=1e-3)


def test_an_unknown_argument_is_not_dropped(caplog):
    model = fake.patcher(fake.WanModel())
    model.model.diffusion_model.form["sinks"] = 4
    assert torch.equal(patched(model).run(VIDEO, text=TEXT), model.run(VIDEO, text=TEXT))
    assert "sinks" in said(caplog)[0] and "own attention" in said(caplog)[0]


def test_the_override_of_an_earlier_node_runs_where_the_method_does_not(caplog):
    model, calls = fake.patcher(fake.WanModel()), []

    def theirs(func, *args, **kwargs):
        calls.append(args[0].shape[1] == args[1].shape[1])
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    patched(model, dense="0").run(VIDEO, text=TEXT)
    assert sorted(calls) == [False, False, False, True]  # cross-attention and the dense block
    assert "ran in 2 of 3" in said(caplog)[0]


def test_a_later_node_that_replaces_the_override_is_told(caplog):
    model = fake.patcher(fake.WanModel())
    later = patched(model).clone()
    later.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kw: func(
        *args, **kw
    )
    assert torch.equal(later.run(VIDEO, text=TEXT), model.run(VIDEO, text=TEXT))
    later.run(VIDEO, text=TEXT)
    assert len(said(caplog)) == 1 and "put its own attention override" in said(caplog)[0]


def test_clones_and_two_nodes_in_a_row():
    model = fake.patcher(fake.Flux())
    one, other = patched(model, dense="2:"), patched(model, arguments="size=1x1x3", dense="0:2")
    assert torch.equal(one.clone().clone().run(PICTURE, text=TEXT), one.run(PICTURE, text=TEXT))
    both = patched(one, arguments="size=1x1x3", dense="0:2").run(PICTURE, text=TEXT)
    outs = [each.run(PICTURE, text=TEXT) for each in (model, one, other)]
    assert all(not torch.allclose(both, out, atol=1e-3) for out in outs)


def test_a_compiled_model_calls_the_method_as_it_is(caplog):
    model = fake.patcher(fake.WanModel(2))
    expected = patched(model).run(VIDEO, text=TEXT)
    model.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    torch.testing.assert_close(patched(model).run(VIDEO, text=TEXT), expected)
    assert ["ran in 2 of 2" in line for line in said(caplog)] == [True, True]


def test_what_is_not_known_is_passed_on(caplog):
    class Strange(fake.WanModel):
        pass

    model = fake.patcher(Strange())
    out = patched(model)
    assert out is not model and out.model_options == {"transformer_options": {}}
    assert "Strange" in said(caplog)[0] and "WanModel" in said(caplog)[0]
    assert torch.equal(out.run(VIDEO, text=TEXT), model.run(VIDEO, text=TEXT))


def test_as_many_text_tokens_as_places_is_declined(caplog):
    model, text = fake.patcher(fake.WanModel()), clip(2, 105, 16)
    assert torch.equal(patched(model).run(VIDEO, text=text), model.run(VIDEO, text=text))
    assert "cannot be told apart" in said(caplog)[0]


def test_tokens_that_are_not_accounted_for_are_declined(caplog):
    model = fake.patcher(fake.Flux())
    model.model.diffusion_model.order = ("text", "grid", "hints")
    more = {"text": TEXT, "hints": [clip(2, 16, 2, 2)]}
    assert torch.equal(patched(model).run(PICTURE, **more), model.run(PICTURE, **more))
    assert "no attention over the 61 tokens" in said(caplog)[0] and "(65, 65)" in said(caplog)[0]


def test_what_a_method_refuses_is_told(caplog):
    model = fake.patcher(fake.WanModel())
    out = patched(model, arguments="size=1x3x3,dilation=1x9x9").run(VIDEO, text=TEXT)
    assert torch.equal(out, model.run(VIDEO, text=TEXT))
    assert "dilation" in said(caplog)[0] and "own attention" in said(caplog)[0]


def test_control_blocks_between_the_blocks_need_their_numbers(caplog):
    model = fake.patcher(fake.WanModel())
    model.model.diffusion_model.vace_blocks = torch.nn.ModuleList()
    assert not torch.equal(patched(model).run(VIDEO, text=TEXT), model.run(VIDEO, text=TEXT))
    model.model.diffusion_model.tells = False
    assert torch.equal(patched(model).run(VIDEO, text=TEXT), model.run(VIDEO, text=TEXT))
    assert "newer ComfyUI" in said(caplog)[-1]


def test_inputs_of_the_node():
    node = load().NODE_CLASS_MAPPINGS["GenkitSparseAttention"]
    inputs = node.INPUT_TYPES()["required"]
    names, given = inputs["method"]
    assert {"neighborhood", "radial", "mixture_of_block", "sliding_window", "shifted_groups"} <= set(names)
    assert not {"reference", "cross_modal_context", "agent"} & set(names)  # they need more than q, k and v
    with pytest.raises(UsageError, match="weights of its own"):
        node().patch(None, "radial", "bias=table:t=2", 0.0, 1.0, "")
    assert given["default"] in names and node.RETURN_TYPES == ("MODEL",)
    assert load().NODE_DISPLAY_NAME_MAPPINGS.keys() == load().NODE_CLASS_MAPPINGS.keys()


def test_genkit_does_not_know_its_integrations():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"] == {
        "include": ["genkit*"]  # the wheel has none of integrations/
    }
    for path in (ROOT / "genkit").rglob("*.py"):
        text = path.read_text()
        if "integrations" not in text and "comfy" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] in ("integrations", "comfy")], path
    assert "genkit" in tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["dependencies"][0]
