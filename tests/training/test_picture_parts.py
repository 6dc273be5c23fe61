"""Text, latents, masks, features and diffusion of the image models' training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit import world
from genkit.errors import ArtifactError
from genkit.families.training.objectives import draw_levels
from genkit.training.data.pixels import as_tensor
from genkit.training.data.world.pictures import CELL, FEATURES, PicturePool, PictureSize, draw_mask, picture_features
from genkit.training.engine.checkpoint import atomic_save
from genkit.training.engine.curriculum import Stage, batch_for, draw_size
from genkit.training.engine.warm_start import begin_from
from genkit.training.toys.dit.model import TEXT_SLOTS, ToyDit
from genkit.training.toys.image.model import ToyImage
from genkit.training.toys.shared.picture_task import picture_loss
from genkit.training.toys.shared.picture_text import apply_merges, build_clip_encoder, build_piece_tokenizer
from genkit.training.toys.shared.picture_vae import build_picture_vae, draw_crops, standardise_latents
from genkit.world.vocabulary import SHAPES


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_picture_vae().eval().requires_grad_(False)


def test_every_grammar_word_is_one_token_and_others_fall_into_pieces(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = build_piece_tokenizer()
    for word in world.picture_words():
        assert len(tokenizer(word).input_ids) == 3, word
    strange = tokenizer("a crimson hexagon größer 東京 !").input_ids
    assert tokenizer.decode(strange, skip_special_tokens=True) == "a crimson hexagon größer 東京 !"
    assert len(strange) > 12
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a crimson dotted square").input_ids == tokenizer("a crimson dotted square").input_ids
    assert again.model_max_length == 77 and len(again) == len(tokenizer)


def test_merges_are_applied_by_rank():
    assert apply_merges(["a", "b", "c"], [("b", "c"), ("a", "b")]) == ["a", "bc"]
    assert apply_merges(["a", "b", "c"], [("a", "b"), ("ab", "c")]) == ["abc"]
    assert apply_merges(["a"], []) == ["a"]


def test_the_clip_encoder_tells_words_apart_and_pools_at_the_end():
    tokenizer = build_piece_tokenizer()
    encoder = build_clip_encoder(tokenizer)
    batch = tokenizer(["a red circle", "a blue circle"], padding="max_length", return_tensors="pt")
    output = encoder(batch.input_ids)
    assert output.last_hidden_state.shape == (2, 77, 128)
    assert (output.pooler_output[0] - output.pooler_output[1]).abs().max() > 0.1
    # The end token follows the three words; what is padded behind it is not what is pooled.
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 4])


def test_standardised_latents_give_the_same_pictures():
    torch.manual_seed(1)
    vae = build_picture_vae().eval()
    pixels = as_tensor(draw_crops(np.random.default_rng(0), 6, 64))
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        shown = vae.decode(before.mode()).sample
        standardise_latents(vae, batches=4)
        after = vae.encode(pixels).latent_dist
        assert torch.allclose(vae.decode(after.mode()).sample, shown, atol=1e-4)
    flat = after.mode().transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 0.5 and (flat.std(1) - 1).abs().max() < 0.5
    ratio = before.std / after.std
    assert torch.allclose(ratio, ratio[:1, :, :1, :1].expand_as(ratio), rtol=1e-3)


def test_features_tell_the_nearest_object():
    actors = (world.PictureActor("red", "square"), world.PictureActor("cyan", "cross", texture="dotted"))
    picture = world.Picture(actors, "black", ((0, "left", 1),))
    spots = np.array([28.0, 100.0], dtype=np.float32)
    found = picture_features(picture, world.Placement(spots, spots * 0 + 64, spots * 0 + 18), 128, 128)
    assert found.shape == (1, 128 // CELL, 128 // CELL, FEATURES)
    for column, shape in ((0, "square"), (15, "cross")):
        assert SHAPES[int(found[0, 8, column, 10 : 10 + len(SHAPES)].argmax())] == shape
    assert int(found[0, 8, :8, 0].argmax()) == 28 // CELL


def test_masks_are_boxes_or_everything():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(60):
        _, placement = world.draw_picture(rng, 128, 128)
        mask = draw_mask(rng, placement, 128, 128)
        rows, columns = np.nonzero(mask)
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        shares.append(mask.mean())
    assert sum(share == 1.0 for share in shares) >= 3 and min(shares) < 0.1


def test_the_pool_keeps_and_renews_and_masks(vae):
    pool = PicturePool(vae, np.random.default_rng(0), fresh=0.25, capacity=6, inpaint=True)
    size = PictureSize(64, 64)
    assert size.tokens == 64
    first = pool.draw(size, 4)
    again = pool.draw(size, 4) and pool.draw(size, 4)
    assert len(pool.stored[size]) == 6 and len(again) == 4
    sample = first[0]
    assert sample.latents.shape == (4, 16, 16) and sample.extra.shape == (5, 16, 16)
    assert set(sample.extra[0].unique().tolist()) <= {0.0, 1.0}
    assert sample.features.shape == (1, 8, 8, FEATURES)


def test_the_diffusion_ends_in_pure_noise_and_velocity_gives_the_picture_back():
    model = ToyImage()
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    level = torch.tensor([0.9999, 0.4])
    noisy, target = model.objective.noised(latents, noise, level)
    assert torch.allclose(noisy[0], noise[0], atol=1e-5)
    kept = model.scheduler.alphas_cumprod[400]
    assert torch.allclose(kept.sqrt() * noisy[1] - (1 - kept).sqrt() * target[1], latents[1], atol=1e-4)


def test_levels_reach_both_ends():
    level = draw_levels(4000, 2.0, torch.Generator().manual_seed(0))
    assert level.min() < 0.01 and level.max() > 0.99 and 0.5 < level.mean() < 0.7


@pytest.mark.parametrize("build", [ToyImage, lambda: ToyImage(inpaint=True), ToyDit], ids=["image", "inpaint", "dit"])
def test_one_step_reaches_every_parameter(vae, build):
    torch.manual_seed(0)
    model = build()
    inpaint = isinstance(model, ToyImage) and model.unet.config.in_channels == 9
    pool = PicturePool(vae, np.random.default_rng(0), inpaint=inpaint)
    # The last layer starts at zero; behind it no gradient would flow in the very first step.
    last = model.unet.conv_out if isinstance(model, ToyImage) else model.transformer.proj_out
    torch.nn.init.normal_(last.weight, std=0.1)
    loss, figures = picture_loss(pool, model, seed=0, tokens=128)(model, 0, 0.0)
    loss.backward()
    assert torch.isfinite(loss) and set(figures) == {"velocity", "align"}
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_flux_reads_texts_in_all_lengths():
    model = ToyDit()
    seen = {model.read(["a red circle"], torch.device("cpu"))[1].shape[1] for _ in range(8)}
    assert seen == set(TEXT_SLOTS)
    long = "a small red circle " * 14
    assert model.read([long], torch.device("cpu"))[1].shape[1] == TEXT_SLOTS[-1]


def test_inpainting_begins_where_the_plain_model_ended(tmp_path):
    plain, wide = ToyImage(), ToyImage(inpaint=True)
    source, target = tmp_path / "checkpoint.pt", tmp_path / "new" / "checkpoint.pt"
    state = {"module": {}, "optimizer": {"state": {}, "param_groups": []}, "count": 1, "seconds": 1.0, "step": 3}
    atomic_save({**state, "average": plain.state_dict()}, source)  # as earlier versions wrote it
    begin_from(source, wide, target)
    ids = wide.read(["a red circle"], torch.device("cpu"))[0]
    noisy, level, extra = torch.randn(1, 4, 16, 16), torch.tensor([0.5]), torch.randn(1, 5, 16, 16)
    with torch.no_grad():
        assert torch.allclose(wide(noisy, level, ids, extra), plain(noisy, level, ids), atol=1e-5)
    assert not target.exists()
    begin_from(source, plain, target)
    assert target.exists()
    with pytest.raises(ArtifactError, match="no run of such a model"):
        begin_from(source, ToyDit(), tmp_path / "other" / "checkpoint.pt")


def test_sizes_grow_and_batches_shrink():
    small, large = PictureSize(64, 64), PictureSize(128, 128)
    stages = (Stage(0.0, ((small, 1.0),)), Stage(0.5, ((large, 1.0),)))
    rng = np.random.default_rng(0)
    assert draw_size(stages, 0.49, rng) is small and draw_size(stages, 0.5, rng) is large
    assert batch_for(small, 3600) == 56 and batch_for(large, 3600) == 14 and batch_for(large, 100) == 4
