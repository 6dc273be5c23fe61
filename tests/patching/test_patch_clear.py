"""CLEAR on tiny models of the real classes: pooling numbers learn and are saved; a published file goes in and out."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import save_file
from tiny_flux import build_tiny_flux

import genkit
from genkit.errors import ArtifactError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    pipe = genkit.load(build_tiny_flux(tmp_path_factory.mktemp("flux")))
    return pipe.transformer


def call(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(24, 3)
    ids[:, 1], ids[:, 2] = torch.arange(24) // 6, torch.arange(24) % 6
    return model(
        hidden_states=torch.randn(1, 24, 16, generator=draw),
        encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
        pooled_projections=torch.randn(1, 32, generator=draw),
        timestep=torch.tensor([0.5]), img_ids=ids, txt_ids=torch.zeros(5, 3), return_dict=False,
    )[0]  # fmt: skip


def published(model, path, down=1, drop=(), more=()):
    """A file with the names that CLEAR publishes, of random numbers."""
    draw, tensors = torch.Generator().manual_seed(3), {}
    for name, value in model.state_dict().items():
        if any(f".attn.{part}." in name for part in ("to_q", "to_k", "to_v", "to_out.0")):
            tensors[name] = value + 0.1 * torch.randn(value.shape, generator=draw)
    if down > 1:
        for name in model.attn_processors:
            tensors[f"{name}.spatial_weight"] = torch.rand(1, 1, 1, down, 1, down, 1, generator=draw)
    for name in drop:
        tensors.pop(name)
    for name in more:
        tensors[name] = torch.zeros(1)
    save_file(tensors, path)
    return tensors


@torch.no_grad()
@pytest.mark.parametrize("down", [1, 2])
def test_a_published_file_takes_the_place_of_the_models_weights(flux, tmp_path, down):
    path = tmp_path / "clear.safetensors"
    tensors = published(flux, path, down)
    own, before = call(flux), {name: value.clone() for name, value in flux.state_dict().items()}
    with genkit.patch(flux, genkit.Clear(radius=2, down=down, weights=str(path))) as patch:
        found = call(flux)
        state = flux.state_dict()
        assert set(state) == set(before)
        for name, value in tensors.items():
            if "spatial_weight" in name:
                site = name.removesuffix(".processor.spatial_weight")
                weight = patch.weights.at("clear", site).spatial_weight
                assert torch.equal(weight, value.reshape(down, down))
            else:
                assert torch.equal(state[name], value)
    after = flux.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(call(flux), own) and not torch.allclose(found, own, atol=1e-3)
    # The same numbers put into the model by hand, and the mask alone.
    flux.load_state_dict({name: value for name, value in tensors.items() if "spatial" not in name}, strict=False)
    with genkit.patch(flux, genkit.Clear(radius=2, down=down)) as patch:
        if down > 1:
            for site in patch.sites:
                key = f"{site}.processor.spatial_weight"
                patch.weights.at("clear", site).spatial_weight.copy_(tensors[key].reshape(down, down))
        assert torch.equal(call(flux), found)
    flux.load_state_dict(before)


@pytest.mark.parametrize(
    ("file", "patch", "words"),
    [
        ({"drop": ["transformer_blocks.0.attn.to_q.weight"]}, {}, "lacks transformer_blocks.0.attn.to_q.weight"),
        ({"more": ["transformer_blocks.7.attn.to_q.weight"]}, {}, "no place for"),
        ({"down": 2}, {}, "down=2"),
        ({}, {"down": 2}, "spatial_weight"),
        ({"down": 2}, {"down": 4}, "4"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(flux, tmp_path, file, patch, words):
    path = tmp_path / "clear.safetensors"
    published(flux, path, **file)
    before = {name: value.clone() for name, value in flux.state_dict().items()}
    with pytest.raises(ArtifactError, match=words):
        genkit.patch(flux, genkit.Clear(radius=2, weights=str(path), **patch))
    assert not genkit.patches(flux)
    after = flux.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to(torch.int32), "'I32', allowed: F64, F32"),
        (lambda value: value * float("nan"), "NaN or infinite weights, allowed: finite numbers"),
        (lambda value: value.bfloat16() / 0, "NaN or infinite weights, allowed: finite numbers"),
    ],
)
def test_a_published_file_without_finite_numbers_changes_nothing(flux, tmp_path, change, words):
    path, name = tmp_path / "clear.safetensors", "transformer_blocks.0.attn.to_v.weight"
    tensors = published(flux, path)
    save_file({**tensors, name: change(tensors[name])}, path)
    before = {name: value.clone() for name, value in flux.state_dict().items()}
    with pytest.raises(ArtifactError, match=f"clear.safetensors: '{name}' .*{words}"):
        genkit.patch(flux, genkit.Clear(radius=2, weights=str(path)))
    after = flux.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_schedule_of_some_layers_does_not_fit_a_file_of_all(flux, tmp_path):
    path = tmp_path / "clear.safetensors"
    published(flux, path)
    with pytest.raises(ArtifactError, match="all attention layers"):
        genkit.patch(flux, genkit.Clear(weights=str(path)), schedule=genkit.Schedule(layers="1:"))


def test_pooling_numbers_learn_and_are_kept_in_a_file(flux, tmp_path):
    flux.requires_grad_(False)
    wanted = call(flux, 1)
    with genkit.patch(flux, genkit.Clear(radius=1.5, down=2)) as patch:
        optimizer = torch.optim.Adam(patch.weights.parameters(), lr=0.05)
        losses = []
        for _ in range(12):
            loss = (call(flux, 1) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0]
        path = patch.weights.save(tmp_path / "pool.safetensors")
        assert patch.weights.count() == 2 * 2 * 2
        found = call(flux, 2).detach()
    with genkit.patch(flux, genkit.Clear(radius=1.5, down=2, weights=str(path))):
        assert torch.equal(call(flux, 2), found)
    with pytest.raises(UsageError, match="down"):
        genkit.patch(flux, genkit.Clear(radius=1.5, weights=str(path)))


def test_checkpointed_gradients_are_the_same(flux):
    flux.requires_grad_(False)
    found = []
    for on in (False, True):
        flux.train()
        flux.enable_gradient_checkpointing() if on else flux.disable_gradient_checkpointing()
        with genkit.patch(flux, genkit.Clear(radius=1.5, down=2)) as patch:
            call(flux).square().sum().backward()
            found.append([value.grad.clone() for value in patch.weights.parameters()])
    flux.disable_gradient_checkpointing()
    flux.eval()
    for one, other in zip(*found, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_a_larger_base_of_rotary_positions_for_the_time_of_a_block(flux):
    with torch.no_grad():
        own, theta = call(flux), flux.pos_embed.theta
        with genkit.rotary_base(flux, 10):
            assert flux.pos_embed.theta == 10 * theta
            turned = call(flux)
        flux.pos_embed.theta = 10 * theta
        by_hand = call(flux)
        flux.pos_embed.theta = theta
        assert torch.equal(turned, by_hand) and not torch.allclose(turned, own, atol=1e-4)
        assert torch.equal(call(flux), own)
    for factor in (0, -1, float("nan"), True):
        with pytest.raises(UsageError, match="above 0"), genkit.rotary_base(flux, factor):
            pass
    wan = tiny.build("wan").model
    with pytest.raises(UnsupportedError, match="base that is read at every call"), genkit.rotary_base(wan, 2):
        pass


def test_a_damaged_file_is_told(flux, tmp_path):
    path = tmp_path / "clear.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="clear.safetensors"):
        genkit.patch(flux, genkit.Clear(weights=str(path)))


def test_published_counts_of_flux():
    """1,793,648,640 numbers are trained in FLUX.1-dev, from the real class without memory."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    with init_empty_weights():
        model = FluxTransformer2DModel(guidance_embeds=True)
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    count = sum(
        value.numel() for name, value in model.named_parameters() if any(f".attn.{part}." in name for part in parts)
    )
    assert count == 1_793_648_640 and len(model.attn_processors) == 57


def test_quantised_projections_are_refused(flux, tmp_path):
    path = tmp_path / "clear.safetensors"
    published(flux, path)
    layer = flux.transformer_blocks[0].attn.to_q
    own = layer.weight
    layer.weight = torch.nn.Parameter((own.detach() * 10).to(torch.int8), requires_grad=False)
    try:
        with pytest.raises(UnsupportedError, match="quantization"):
            genkit.patch(flux, genkit.Clear(weights=str(path)))
    finally:
        layer.weight = own
