"""Weights written into prompts, and in force on tiny models."""

from __future__ import annotations

import importlib

import pytest
import tiny
import torch
from tiny_sd import tiny_clip

from genkit.control import Control, Rows
from genkit.control.rules import FORMS
from genkit.control.spans import TextPart
from genkit.control.words import WordWeights, parse_weights
from genkit.control.words.weights import word_rules
from genkit.errors import UsageError


def weights(prompt: str) -> tuple[str, list]:
    found = parse_weights(prompt)
    return found.text, [(found.named(word), word.weight, word.frames) for word in found.words]


ALL = (0.0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "text", "words"),
    [
        ("a (red:1.3) circle", "a red circle", [("red", 1.3, ALL)]),
        ("(two words:.5)(x:2)", "two wordsx", [("two words", 0.5, ALL), ("x", 2.0, ALL)]),
        ("a ( red : 1.50 ) c", "a  red  c", [(" red ", 1.5, ALL)]),
        ("(moves:0@0.5-1)", "moves", [("moves", 0.0, (0.5, 1.0))]),
        ("((a b:1.2) c:1.5)", "a b c", [("a b c", 1.5, ALL), ("a b", 1.2, ALL)]),
        ("plain (brackets) and (note: this) stay", "plain (brackets) and (note: this) stay", []),
        (r"\(red:1.3\) and \(x", "(red:1.3) and (x", []),
        (r"(a \(b\):2) \n", r"a (b) \n", [("a (b)", 2.0, ALL)]),
        ("unclosed (red:1.3", "unclosed (red:1.3", []),
        ("smile :) (x)", "smile :) (x)", []),
        ("(outer (red:2) text)", "(outer red text)", [("red", 2.0, ALL)]),
        ("", "", []),
    ],
)
def test_weights_are_taken_out_of_a_prompt(prompt, text, words):
    assert weights(prompt) == (text, words)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red:big) circle", "'big' .* is no number"),
        ("a (red:1.3.2)", "'1.3.2' .* is no number"),
        ("a (red: -1)", "'-1' .* is no number from 0 to 10"),
        ("a (red:1e9)", "'1e9' .* is no number from 0 to 10"),
        ("a (red:)", "'' .* is no number"),
        ("a (:1.3)", "weighs no word"),
        ("(red:11)", "11 .* is above 10"),
        ("(red:1@0.7-0.2)", "two shares"),
        ("(red:1@half)", "is no number"),
    ],
)
def test_a_weight_without_meaning_is_refused(prompt, message):
    with pytest.raises(UsageError, match=message):
        parse_weights(prompt)


@pytest.mark.parametrize("prompt", ["(" * 50_000 + ")" * 50_000, "(" + "a:" * 50_000 + " b)", "((a:2)" * 101])
def test_prompts_of_any_shape_are_read_at_once(prompt):
    import time

    begun = time.process_time()
    if "2" in prompt:
        with pytest.raises(UsageError, match="more than 100 weights"):
            parse_weights(prompt)
    else:
        assert parse_weights(prompt).text == prompt
    assert time.process_time() - begun < 2


def test_a_long_phrase_can_be_weighed():
    phrase = "word " * 60
    found = parse_weights(f"a ({phrase}:2) b")
    assert found.text == f"a {phrase} b" and found.named(found.words[0]) == phrase


def test_examples_of_the_syntax():
    import doctest

    assert doctest.testmod(importlib.import_module("genkit.control.words.syntax")).failed == 0


def test_weights_become_rules_on_the_tokens_of_both_texts():
    part = TextPart(tiny_clip()[1], length=77)
    prompt, negative = parse_weights("a (red:1.5) (b:1) circle"), parse_weights("(x:0.5)")
    rules = word_rules([part], prompt, negative, start=0.2, stop=0.6)
    assert [(rule.tokens, rule.weight, rule.where.conditional) for rule in rules] == [
        ((2, 3, 4), 1.5, True),
        ((1,), 0.5, False),
    ]
    assert {(rule.where.start, rule.where.stop) for rule in rules} == {(0.2, 0.6)}
    (additive, *_) = word_rules([part], prompt, form="additive", include_eos=True)
    assert additive.weight == 0.5 and additive.tokens == (2, 3, 4, 12)
    with pytest.raises(UsageError, match="form of word weights"):
        word_rules([part], prompt, form="loud")


@pytest.mark.parametrize("form", FORMS)
def test_only_the_conditional_half_and_the_chosen_frames_change(form):
    """Wan is called once per half, announced or told; the weight holds for the last frames of the clip."""
    found = tiny.build("wan")
    part = TextPart(tiny_clip()[1], length=77)
    frames = found.grid[0]
    rules = word_rules([part], parse_weights("(a:4@0.5-1)"), form=form)
    seen = []

    def inputs(module, args, output):
        seen.append(output)

    layer = dict(found.model.named_modules())["blocks.0.attn2"]
    hook = layer.register_forward_hook(inputs)
    plain = found.run()
    with Control(found.model, rules) as control:
        control.begin(rows=Rows.of("image", "image", guided=False))
        changed = found.run()
        assert all(site.ran for site in control.report().sites)
        half = Rows.of("image", "image").half(conditional=False)
        control.begin(rows=half)
        assert torch.equal(found.run(), plain)
    hook.remove()
    assert not torch.allclose(changed, plain, atol=1e-4)
    before, after = (each.unflatten(1, found.grid) for each in seen[:2])
    first = round(0.5 * frames)
    torch.testing.assert_close(after[:, :first], before[:, :first], rtol=1e-5, atol=1e-5)
    assert (after[:, first:] - before[:, first:]).abs().amax(-1).min() > 0


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    from diffusers import StableDiffusionPipeline

    found = StableDiffusionPipeline.from_pretrained(tiny_sd)
    found.set_progress_bar_config(disable=True)
    return found


def image(pipe, prompt, **changes):
    call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0), **changes}
    return torch.from_numpy(pipe(prompt, **call).images)


def test_words_weigh_in_a_stock_pipeline_and_are_gone_afterwards(pipe):
    plain = image(pipe, "a red circle", negative_prompt="blue")
    with WordWeights(pipe, "a (red:4) circle", {"circle": 0.2}) as words:
        weighed = image(pipe, words.prompt, negative_prompt="blue")
        assert words.report().remarks == ()
    assert words.prompt == "a red circle" and not torch.allclose(weighed, plain, atol=1e-4)
    assert torch.equal(image(pipe, "a red circle", negative_prompt="blue"), plain)
    with WordWeights(pipe, "a (red:1) circle") as words:
        assert torch.equal(image(pipe, words.prompt, negative_prompt="blue"), plain) and words.report() is None


def test_weights_of_the_negative_prompt_act_on_its_half(pipe):
    plain = image(pipe, "a red circle", negative_prompt="blue")
    with WordWeights(pipe, "a red circle", negative_prompt="(blue:5)") as words:
        weighed = image(pipe, words.prompt, negative_prompt=words.negative_prompt)
        assert not torch.allclose(weighed, plain, atol=1e-5)
        assert torch.equal(
            image(pipe, words.prompt, guidance_scale=1.0), image(pipe, "a red circle", guidance_scale=1.0)
        )


def test_a_word_of_weight_nothing_leaves_the_picture_of_the_other_words(pipe):
    """With a weight of 0 the keys and values of a word have no influence, whatever they are."""
    found = []
    for embedding in (0.0, 100.0):
        with WordWeights(pipe, "a (red:0) circle"):
            states = pipe.encode_prompt("a red circle", "cpu", 1, False)[0]
            states[:, 2:5] = embedding
            found.append(image(pipe, None, prompt_embeds=states, guidance_scale=1.0))
    assert torch.equal(*found)


def test_weights_given_by_word_are_checked(pipe):
    for given, message in (
        ({"blue": 2}, "word: got 'blue'"),
        ({"red": -1}, "weight of 'red'"),
        ({"red": (1, (1, 0))}, "two shares"),
    ):
        with pytest.raises(UsageError, match=message):
            WordWeights(pipe, "a red circle", given)
    with pytest.raises(UsageError, match="genkit does not know how int reads prompts"):
        WordWeights(1, "a (red:2) circle")


@pytest.mark.parametrize("build", ["stable_diffusion_xl", "stable_diffusion_3", "flux", "wan"])
def test_stock_pipelines_run_with_word_weights(build, request):
    """Rows are told from each pipeline's calls: both halves in one call, one call per half, announced or not."""
    import tiny_pipelines
    from diffusers import FluxPipeline

    if build == "flux":
        pipe = FluxPipeline.from_pretrained(request.getfixturevalue("tiny_flux"))
    else:
        pipe = getattr(tiny_pipelines, build)()
    kinds: list = []

    def rows(batch, branch):
        found = Rows.of_call(batch, branch, 1)
        kinds.append(tuple(row.conditional for row in found.entries))
        return found

    with WordWeights(pipe, "a (red:3) circle", slots=16 if build in ("flux", "wan") else None) as words:
        words.control.begin()
        words.control.state.rows = rows
        call = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 2.0, "height": 32, "width": 32}
        if build == "wan":
            call |= {"num_frames": 5, "max_sequence_length": 16, "negative_prompt": ""}
        if build == "flux":
            call |= {"max_sequence_length": 16, "true_cfg_scale": 2.0, "negative_prompt": ""}
        pipe(words.prompt, **call)
        assert words.report().remarks == () and any(site.ran for site in words.report().sites)
    one, each = {(False, True)}, {(True,), (False,)}
    assert set(kinds) == (one if "stable" in build else each)


@pytest.mark.parametrize("form", FORMS)
def test_sound_hears_the_weights_too(form):
    """LTX-2: cross-attention of the sound tokens, the second half of the clip only."""
    found = tiny.build("ltx2")
    rules = word_rules([TextPart(tiny_clip()[1], length=77)], parse_weights("(a:4@0.5-1)"), form=form)
    layer = dict(found.model.named_modules())["transformer_blocks.0.audio_attn2"]
    seen = []
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    found.run()
    with Control(found.model, rules) as control:
        control.begin(rows=Rows.of("image", "image", guided=False))
        found.run()
        assert {site.role for site in control.report().sites if site.ran} == {"cross", "audio_cross"}
    hook.remove()
    first = round(0.5 * seen[0].shape[1])
    torch.testing.assert_close(seen[1][:, :first], seen[0][:, :first], rtol=1e-5, atol=1e-5)
    assert (seen[1][:, first:] - seen[0][:, first:]).abs().amax(-1).min() > 0
