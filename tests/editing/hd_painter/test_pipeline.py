"""Inpainting with tiny models of the real classes: what is kept, what attention is told, what RASG's gradient is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.control import Control, ReadMaps, Rows, Where
from genkit.editing.hd_painter import HDPainterPipeline
from genkit.editing.hd_painter.attention import PromptAttention, prompt_tokens, unet_grids
from genkit.editing.hd_painter.known import beside_latents, filled, matched, token_mask, without_border
from genkit.editing.hd_painter.painta import BlockScores
from genkit.editing.hd_painter.rasg import attention_score, mixed
from genkit.editing.shared.walk import noisier, walked
from genkit.errors import UnsupportedError, UsageError
from genkit.media.canvas import Mask

torch.set_num_threads(1)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(height, width, top, left, bottom, right):
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    return inside


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    return genkit.load(str(tiny_sd))


def with_nine_channels(pipe):
    """The same with a UNet made for inpainting."""
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}).eval()
    return StableDiffusionInpaintPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


def run(pipe, picture, mask, seed=0, **options):
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(seed), **options}
    return HDPainterPipeline.from_pipe(pipe)(picture, mask, "a red cat", **given)


@pytest.mark.parametrize("nine", [False, True])
@pytest.mark.parametrize("options", [{}, {"rasg": 0.1}, {"painta": 0.0, "eta": 1.0}, {"guidance_scale": 1.0}])
def test_pixels_outside_the_mask_are_the_pictures_and_the_model_stays_as_it_was(pipe, nine, options):
    pipe = with_nine_channels(pipe) if nine else pipe
    picture, inside = noise(21, 30), box(21, 30, 4, 5, 14, 17)
    before = [weight.requires_grad for weight in pipe.unet.parameters()]
    output = run(pipe, Image.fromarray(picture), inside, **options)
    made = np.asarray(output.images[0])
    assert np.array_equal(made[~inside], picture[~inside]) and (made != picture)[inside].any()
    assert np.array_equal(run(pipe, picture, Mask(inside), **options).frames[0], made)
    assert not np.array_equal(run(pipe, picture, inside, seed=1, **options).frames[0], made)
    assert [weight.requires_grad for weight in pipe.unet.parameters()] == before
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_painta_with_everything_unknown_changes_nothing(pipe):
    picture, full = noise(16, 16), np.ones((16, 16), bool)
    plain, aware = (run(pipe, picture, full, painta=share, num_inference_steps=4) for share in (0.0, 1.0))
    torch.testing.assert_close(aware.latents, plain.latents, atol=1e-5, rtol=1e-4)
    half = box(16, 16, 0, 0, 8, 16)
    plain, aware = (run(pipe, picture, half, painta=share, num_inference_steps=4) for share in (0.0, 1.0))
    assert (aware.latents - plain.latents).abs().max() > 1e-4


def test_rasg_moves_samples_and_none_of_it_is_plain_sampling(pipe):
    picture, inside = noise(16, 16), box(16, 16, 4, 4, 12, 12)
    plain, steered = (run(pipe, picture, inside, painta=0.0, rasg=share) for share in (0.0, 0.5))
    assert (plain.latents - steered.latents).abs().max() > 1e-3
    drawn, gradient = torch.ones(2), torch.full((2,), 3.0)
    assert mixed(drawn, 0.0, None, 0.5) == (0.0, None)
    share, fresh = mixed(None, 0.0, gradient, 0.1)
    assert share == pytest.approx(0.1) and torch.allclose(fresh, gradient)
    share, fresh = mixed(drawn, 0.6, gradient, 0.8)
    assert share == pytest.approx(1) and torch.allclose(fresh, 0.6 * drawn + 0.8 * gradient)


def test_block_scores_are_the_blocks_own_cross_attention(pipe):
    """With no factor in force, what the hook foresees is what cross-attention then does."""
    tokens, grid = prompt_tokens(pipe, "a red cat"), (8, 8)
    text = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    scores = BlockScores(pipe.unet, tokens, {64}, slice(-1, None))
    name = "up_blocks.1.attentions.1.transformer_blocks.0"
    read = ReadMaps(name="x", tokens=tokens, where=Where(names=name + r"\.attn2", conditional=True))
    with Control(pipe.unet, [read]) as control, torch.no_grad():
        control.begin(step=0, steps=1, rows=Rows.of("picture"))
        pipe.unet(latents, 500, encoder_hidden_states=text)
    found = scores.found[f"{name}.attn1"]
    scores.remove()
    assert found.shape == (1, 64)
    torch.testing.assert_close(found, control.maps.latest("x", grid).sum(-1).flatten(1), atol=1e-6, rtol=1e-5)


def test_the_gradient_is_that_of_the_score(pipe):
    """Against finite differences, in double precision."""
    from copy import deepcopy

    from genkit.editing.shared.branches import Branch, Branches
    from genkit.editing.shared.model import EditModel

    pipe = type(pipe)(**{**pipe.components, "unet": deepcopy(pipe.unet).double()}, requires_safety_checker=False)
    model = EditModel.of(pipe)
    unknown = torch.zeros(1, 1, 8, 8)
    unknown[..., 2:6, 2:6] = 1
    attention = PromptAttention(model, "a red cat", unknown, 0.0, True, None)
    branches = Branches(model, {"picture": Branch("a red cat", "", 4.0)}, control=attention, together=True)
    branches.conditions = type(branches.conditions)({n: t.double() for n, t in branches.conditions.tensors.items()})
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    way = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def score(at):
        branches({"picture": at}, 0.5, 0, 2)
        maps = attention.control.maps.latest("prompt").flatten(1, 3)
        return attention_score(maps, token_mask(unknown, attention.grids[-1]))

    with attention:
        leaf = latents.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(leaf), leaf)
        with torch.no_grad():
            slope = (score(latents + 1e-4 * way) - score(latents - 1e-4 * way)) / 2e-4
    assert float(slope) == pytest.approx(float((gradient * way).sum()), rel=2e-3)


def test_inpainting_unets_read_mask_and_picture_without_its_unknown_part(pipe):
    model = HDPainterPipeline.from_pipe(with_nine_channels(pipe)).model
    picture, inside = noise(16, 16), box(16, 16, 0, 0, 16, 7)
    found = beside_latents(model, picture, inside)
    assert found.shape == (1, 5, 8, 8)
    assert found[0, 0].tolist() == [[1.0] * 4 + [0.0] * 4] * 8  # every latent that holds an unknown pixel
    other = np.where(inside[..., None], noise(16, 16, 5), picture)
    assert torch.equal(beside_latents(model, other, inside), found)


def test_flow_models_are_inpainted_without_rasg(tiny_flux):
    pipe = genkit.load(str(tiny_flux))
    picture, inside = noise(16, 24), box(16, 24, 4, 4, 12, 12)
    output = run(pipe, picture, inside, painta=1.0, guidance_scale=1.0)
    assert np.array_equal(output.frames[0][~inside], picture[~inside])
    plain = run(pipe, picture, inside, painta=0.0, guidance_scale=1.0)
    assert (plain.latents - output.latents).abs().max() > 1e-5
    with pytest.raises(UnsupportedError, match="leave RASG out"):
        run(pipe, picture, inside, rasg=0.1)


def test_an_empty_prompt_is_sampled_plainly_and_it_is_said(pipe):
    output = HDPainterPipeline(pipe)(noise(16, 16), box(16, 16, 4, 4, 12, 12), "", rasg=0.1, num_inference_steps=1)
    assert any("names nothing" in line for line in output.told)


def test_masks_and_pictures_that_do_not_fit_are_refused(pipe):
    picture = noise(16, 16)
    for mask, said in (
        (np.zeros((16, 16), bool), "marks nothing"),
        (np.ones((8, 16), bool), "16x8 pixels and the picture 16x16"),
        (np.ones((16, 16)), "an array"),
        ("mask.png", "an array"),
    ):
        with pytest.raises(UsageError, match=said):
            run(pipe, picture, mask)
    with pytest.raises(UsageError, match="one picture"):
        run(pipe, np.stack([picture, picture]), np.ones((16, 16), bool))


def test_only_the_surroundings_of_the_mask_go_through_the_model(pipe):
    picture, inside = noise(200, 300), box(200, 300, 50, 60, 62, 72)
    output = run(pipe, picture, inside, context=4, least=(16, 16))
    assert output.details["canvas"].shape == (24, 24, 3)
    assert any("24x24 pixels around the mask, from column 54 and row 44" in line for line in output.told)
    assert np.array_equal(output.frames[0][~inside], picture[~inside])
    scaled = run(pipe, picture, inside, context=4, least=(8, 8), longest=16)  # 24 pixels
    assert scaled.details["canvas"].shape == (16, 16, 3) and any("scaled to 16x16" in line for line in scaled.told)
    assert np.array_equal(scaled.frames[0][~inside], picture[~inside])


def test_unknown_parts_are_filled_smoothly_and_colours_are_matched():
    rows, columns = np.mgrid[:41, :60]
    ramp = np.stack([rows * 4, columns * 4, rows + columns], -1).astype(np.uint8)
    inside = box(41, 60, 10, 20, 25, 40)
    hidden = np.where(inside[..., None], noise(41, 60), ramp)
    continued = filled(hidden, inside)
    assert np.array_equal(continued[~inside], ramp[~inside])
    assert np.abs(continued.astype(int) - ramp).max() <= 12
    shifted = np.clip(ramp.astype(int) + (10, -5, 3), 0, 255).astype(np.uint8)
    assert np.abs(matched(shifted, ramp, inside)[inside].astype(int) - ramp[inside]).max() <= 1
    full = np.ones((41, 60), bool)
    object_beside = ramp.copy()
    object_beside[8:10, 20:40] = (255, 0, 0)  # shown by one of the two only: no shift of colour
    assert np.abs(matched(object_beside, ramp, inside)[inside].astype(int) - ramp[inside]).max() <= 1
    assert np.array_equal(matched(shifted, ramp, full), shifted) and filled(ramp, full).shape == ramp.shape


def test_objects_are_begun_inside_the_masks_border():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 1:5, 0:4] = 1
    wanted = torch.zeros(6, 6)
    wanted[2:4, 0:3] = 1  # the left edge of the picture is no border
    assert torch.equal(without_border(mask)[0, 0], wanted)
    line = torch.zeros(1, 1, 6, 6)
    line[..., 2, :] = 1
    assert torch.equal(without_border(line), line)


def test_the_border_is_known_at_first_and_made_at_last(pipe):
    picture, inside = noise(16, 16), box(16, 16, 4, 4, 12, 12)
    seen = []
    options = {"num_inference_steps": 4, "painta": 0.0, "progress": lambda done, steps, made: seen.append(made)}
    run(pipe, picture, inside, inset=0.5, **options)
    fresh = [(made != seen[0]).flatten(1).any() for made in seen]
    border = [made[0, :, 2, 2] for made in seen]
    assert torch.equal(border[0], border[1]) and not torch.equal(border[1], border[2]) and fresh[1]


def test_steps_are_taken_again_from_the_level_they_began_at(pipe):
    assert walked(4, 1) == ((0, False), (1, False), (2, False), (3, False))
    assert walked(3, 2) == ((0, True), (0, False), (1, True), (1, False), (2, False))
    assert [index for index, _ in walked(20, 3)].count(17) == 3 and walked(20, 3)[-2:] == ((18, False), (19, False))
    picture, inside, seen = noise(16, 16), box(16, 16, 4, 4, 12, 12), []
    options = {"num_inference_steps": 3, "painta": 0.0}
    once = run(pipe, picture, inside, **options)
    twice = run(pipe, picture, inside, resample=2, progress=lambda *told: seen.append(told[:2]), **options)
    assert seen == [(done, 5) for done in range(1, 6)]
    assert np.array_equal(twice.frames[0][~inside], picture[~inside]) and not torch.equal(once.latents, twice.latents)
    again = run(pipe, picture, inside, resample=2, **options)
    assert torch.equal(again.latents, twice.latents)
    with pytest.raises(UsageError, match="resample"):
        run(pipe, picture, inside, resample=0, **options)


def test_latents_made_noisier_have_the_signal_and_the_deviation_of_their_level(pipe):
    model = HDPainterPipeline.from_pipe(pipe).model
    clean = torch.full((1, 4, 200, 200), 3.0)
    drawn = [torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    found = noisier(model, model.noised(clean, drawn[0], 0.4), 0.4, 0.6, drawn[1])
    signal, spread = model.parts(0.6)
    assert found.mean().item() == pytest.approx(3 * signal, abs=0.02)
    assert found.std().item() == pytest.approx(spread, abs=0.02)


def test_tokens_of_a_mask_are_never_none():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    assert token_mask(mask, (4, 4)).view(4, 4)[:, 0].tolist() == [True, True, False, False]
    dot = torch.zeros(1, 1, 16, 16)
    dot[..., 5, 5] = 1
    assert token_mask(dot, (2, 2)).tolist() == [True, False, False, False]


def test_grids_are_a_half_and_a_quarter_of_the_latents_where_a_unet_attends(pipe):
    full = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
    }
    config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(full)
    assert unet_grids((64, 64), config) == ((32, 32), (16, 16))
    assert unet_grids((65, 64), config) == ((33, 32), (17, 16))
    assert unet_grids((8, 8), pipe.unet.config) == ((4, 4),)


def test_the_prompts_tokens_are_its_words_and_clips_end_mark(pipe, tiny_flux):
    count = len(pipe.tokenizer("a red cat").input_ids)
    assert prompt_tokens(pipe, "a red cat") == tuple(range(1, count))
    assert prompt_tokens(pipe, "") == ()
    words = prompt_tokens(genkit.load(str(tiny_flux)), "a red circle")
    assert len(words) == 3 and words[-1] - words[0] == 2
