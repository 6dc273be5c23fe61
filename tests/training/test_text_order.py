"""Word order in text encoders: local biases, answers word by word, and a start from trained weights."""

from __future__ import annotations

import argparse
import copy

import numpy as np
import pytest
import torch

from genkit import world
from genkit.errors import ArtifactError, UsageError
from genkit.training.engine.optim import muon_adamw
from genkit.training.toys.dit.model import ToyDit
from genkit.training.toys.image.model import ToyImage
from genkit.training.toys.shared.picture_text import build_clip_encoder, build_piece_tokenizer, build_t5_encoder
from genkit.training.toys.shared.starts import begin_from_weights, teach_text, weights_folder
from genkit.training.toys.shared.text import build_text_encoder, build_word_tokenizer
from genkit.training.toys.shared.text_order import (
    CLIP_QUESTIONS,
    PICTURE_QUESTIONS,
    Question,
    clip_question,
    draw_batch,
    local_bias,
    picture_answers,
    picture_question,
    pretrain,
)
from genkit.world.vocabulary import SHAPES


def shape_question() -> Question:
    """Two objects whose shapes only the order of words tells apart."""

    def draw(rng):
        scene = world.draw_scene(rng, actors=2, moving=False)
        text = world.caption(scene, picture=True)
        shape = {actor.colour: actor.shape for actor in scene.actors}
        return text, [{"shape": shape[word]} if word in shape else {} for word in text.split()]

    return Question({"shape": SHAPES}, draw)


@pytest.mark.parametrize("build, layers", [(build_t5_encoder, 1), (build_text_encoder, 2)])
def test_every_head_begins_with_a_neighbour_of_its_own(build, layers):
    encoder = build(20)
    tables = [value for name, value in encoder.named_parameters() if "relative_attention_bias" in name]
    before = [table.detach().clone() for table in tables]
    local_bias(encoder)
    assert len(tables) == layers
    for table, old in zip(tables, before, strict=True):
        moved = (table.detach() - old).nonzero().tolist()
        assert moved == [[1, 0], [2, 2], [17, 1], [18, 3]]


def test_an_encoder_without_relative_biases_is_refused():
    with pytest.raises(UsageError, match="T5EncoderModel"):
        local_bias(build_clip_encoder(build_piece_tokenizer()))


def test_captions_alone_teach_which_shape_belongs_to_which_colour():
    tokenizer = build_word_tokenizer()
    torch.manual_seed(0)
    encoder = build_text_encoder(len(tokenizer), 64)
    local_bias(encoder)
    right = pretrain(encoder, tokenizer, shape_question(), steps=60, batch=32)
    # Knowing the two shapes but not whose they are gives 0.6.
    assert right["shape"] > 0.9


def test_words_of_a_caption_get_the_answers_of_their_object():
    cast = (
        world.PictureActor("red", "circle", "big", texture="striped"),
        world.PictureActor("blue", "square", "small"),
        world.PictureActor("pink", "cross"),
    )
    picture = world.Picture(cast, "orange", ((0, "left", 1), (2, "above", 0)))
    text = world.picture_caption(picture)
    said = text.split()
    found = picture_answers(picture, text)
    assert text.endswith("on an orange background")
    assert found[said.index("orange")] == {"role": "background"}
    red = {"role": "object", "colour": "red", "shape": "circle", "size": "big", "texture": "striped"}
    assert found[said.index("red")] == {**red, "is": "left", "has": "below"} == found[said.index("red") + 1]
    # Medium is never said, so it is not asked.
    assert "size" not in found[said.index("pink")] and found[said.index("pink")]["is"] == "above"
    again = len(said) - 1 - said[::-1].index("red")
    assert again != said.index("red") and found[again]["shape"] == "circle" and "size" not in found[again]


@pytest.mark.parametrize(
    "question, names, vocabulary",
    [(picture_question(), PICTURE_QUESTIONS, world.picture_words()), (clip_question(), CLIP_QUESTIONS, world.words())],
)
def test_a_batch_asks_every_question_of_words_the_tokenizer_knows(question, names, vocabulary):
    tokenizer = build_word_tokenizer(vocabulary=vocabulary)
    ids, mask, right = draw_batch(question, tokenizer, 24, np.random.default_rng(0), slots=48)
    assert ids.shape == mask.shape == (24, 48) and tokenizer.unk_token_id not in ids
    for name in names:
        asked = right[name] >= 0
        assert asked.any() and (mask[asked] == 1).all(), name
    colours = [tokenizer.convert_tokens_to_ids(colour) for colour in names["colour"]]
    words = ids[right["colour"] >= 0].tolist()
    answers = right["colour"][right["colour"] >= 0].tolist()
    told = [answer for word, answer in zip(words, answers, strict=True) if word in colours]
    assert told == [colours.index(word) for word in words if word in colours] and len(told) > 24


def test_named_parameters_have_a_rate_of_their_own():
    encoder = build_t5_encoder(20)
    optimizer = muon_adamw(encoder.named_parameters(), 1e-3, factors={"relative_attention": 10.0})
    (fast,) = [group for group in optimizer.param_groups if group["factor"] == 10.0]
    table = dict(encoder.named_parameters())["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert len(fast["params"]) == 1 and fast["params"][0] is table and not fast["muon"]
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(everything) == len(list(encoder.parameters()))


@pytest.mark.parametrize("name, build", [("toy-image", ToyImage), ("toy-dit", ToyDit)])
def test_a_run_begins_with_the_weights_of_a_model(name, build):
    from safetensors.torch import load_file

    model = build()
    begin_from_weights(name, model)
    shipped = load_file(weights_folder(name) / "text_encoder" / "model.safetensors")
    own = model.text_encoder.state_dict()
    assert all(torch.equal(own[key], value.float()) for key, value in shipped.items())


def test_weights_of_another_model_are_refused():
    other = ToyDit()
    other.transformer.proj_out = torch.nn.Linear(4, 4)
    with pytest.raises(ArtifactError, match="not the transformer of such a model"):
        begin_from_weights("toy-dit", other)
    with pytest.raises(ArtifactError, match="has no unet"):
        begin_from_weights("toy-dit", ToyImage())
    with pytest.raises(UsageError, match="--weights"):
        weights_folder("someone/something")


def test_a_taught_encoder_is_kept_for_the_runs_to_come(tmp_path):
    tokenizer = build_word_tokenizer()
    options = argparse.Namespace(folder=tmp_path, weights=None, text_steps=1, seed=0)
    first, again = build_text_encoder(len(tokenizer), 32), build_text_encoder(len(tokenizer), 32)
    teach_text(options, first, tokenizer, shape_question())
    teach_text(options, again, tokenizer, shape_question())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_no_text_steps_keep_the_encoder_of_the_weights(tmp_path):
    tokenizer = build_word_tokenizer()
    encoder = build_text_encoder(len(tokenizer), 32)
    before = copy.deepcopy(encoder.state_dict())
    options = argparse.Namespace(folder=tmp_path, weights="toy-video", text_steps=0, seed=0)
    teach_text(options, encoder, tokenizer, shape_question())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
