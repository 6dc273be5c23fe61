"""Tokens that are not in raster order: a method sees them in raster order, the model gets its own order back."""

from __future__ import annotations

import pytest
import torch
from gate_methods import Full, Recorder

import genkit
from genkit.errors import UnsupportedError
from genkit.layout import TokenLayout
from genkit.patching.order import Orders


def _model(attention_type):
    from diffusers import Kandinsky5Transformer3DModel

    torch.manual_seed(0)
    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
        attention_type=attention_type,
    )  # fmt: skip
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    args = {
        "hidden_states": torch.randn(1, 1, 16, 32, 4), "encoder_hidden_states": torch.randn(1, 6, 16),
        "timestep": torch.tensor([500.0]), "pooled_projections": torch.randn(1, 8),
        "visual_rope_pos": [torch.arange(1), torch.arange(8), torch.arange(16)], "text_rope_pos": torch.arange(6),
        "return_dict": False,
    }  # fmt: skip
    return model.eval(), args


_SPARSE = {"to_fractal": True, "P": 0.9, "sta_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool)}


def _dense_in_tiles(model):
    """Processors that keep the tiled order of tokens but leave the model's own sparse attention out."""
    from diffusers.models.transformers.transformer_kandinsky import Kandinsky5AttnProcessor

    class Dense(Kandinsky5AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, rotary_emb=None, sparse_params=None):
            return super().__call__(attn, hidden_states, encoder_hidden_states, rotary_emb, None)

    for block in model.visual_transformer_blocks:
        block.self_attention.set_processor(Dense())


def test_an_order_of_boxes_and_back():
    layout = TokenLayout.of_grid(1, 8, 16, text=3)
    order = Orders().of(layout, (1, 8, 8), torch.device("cpu"))
    # Measured on the model: patch (0, 6, 14) of 8 x 16 is token 118, in raster order it would be 110.
    assert order.places[110] == 118 and order.places[-3:].tolist() == [128, 129, 130]
    x = torch.randn(2, layout.length, 3)
    assert torch.equal(order.from_raster(order.to_raster(x)), x)
    with pytest.raises(UnsupportedError, match="does not come in boxes"):
        Orders().of(TokenLayout.of_grid(1, 6, 16), (1, 8, 8), torch.device("cpu"))


@torch.no_grad()
def test_a_window_means_the_same_in_tiles_and_in_raster_order():
    model, args = _model("nabla")
    _dense_in_tiles(model)
    method = genkit.Neighborhood(size=(1, 3, 5))
    for each, roles in ((method, "self"), (Full(), None)):
        with genkit.patch(model, each, roles=roles) as handle:
            raster = model(**args)[0]
            tiled = model(**args, sparse_params=_SPARSE)[0]
            assert not handle.report().declined
        torch.testing.assert_close(tiled, raster, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_method_sees_keys_in_raster_order():
    model, args = _model("nabla")
    _dense_in_tiles(model)
    recorder = Recorder()
    with genkit.patch(model, recorder, roles="self", schedule=genkit.Schedule(layers=0)):
        model(**args)
        model(**args, sparse_params=_SPARSE)
    (_, raster), (_, tiled) = recorder.seen
    torch.testing.assert_close(tiled, raster)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_the_models_own_sparse_attention_keeps_its_calls():
    """A BlockMask is no error in the middle of the forward: the backend that knows it gets the call, which is told."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    model, args = _model("nabla")
    before = _AttentionBackendRegistry._active_backend
    try:
        for block in model.visual_transformer_blocks:
            block.self_attention.processor._attention_backend = AttentionBackendName.FLEX
        own = model(**args, sparse_params=_SPARSE)[0]
        with genkit.patch(model, Full()) as handle:
            patched = model(**args, sparse_params=_SPARSE)[0]
            report = handle.report()
    finally:
        _AttentionBackendRegistry._active_backend = before
    (reason,) = report.declined
    assert "BlockMask" in reason and report.declined[reason] == 2 and report.ran == 2
    torch.testing.assert_close(patched, own, atol=2e-5, rtol=2e-5)
