"""New words from one picture: what has gradients, what the losses are, files, going on, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import genkit
from genkit.errors import ArtifactError, GenkitError, UnsupportedError, UsageError
from genkit.lora.files import NAMED
from genkit.media.files import write_media
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.training.engine.checkpoint import load_checkpoint
from genkit.training.lora.plan import LoraPlan
from genkit.training.lora.run import Run, train_lora
from genkit.training.lora.settings import LoraSettings
from genkit.training.lora.words import reading as reading_module
from genkit.training.lora.words.masks import attention_losses
from genkit.training.lora.words.task import WordOptions, _rows

CAPTION = "a <p> and a <q> on z"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One picture of two things."""
    folder = tmp_path_factory.mktemp("picture")
    picture = np.full((1, 16, 16, 3), 128, np.uint8)
    picture[:, 2:8, 2:8], picture[:, 9:14, 8:15] = (250, 20, 20), (20, 20, 250)
    write_media(folder / "two.png", picture)
    (folder / "two.txt").write_text(CAPTION)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def settings(model, data, cache, output, **more):
    given = {
        "model": str(model), "data": str(data), "output": str(output), "cache_dir": str(cache), "resolution": "16x16",
        "rank": 2, "learning_rate": 0.01, "word_learning_rate": 0.1, "max_train_steps": 4, "checkpointing_steps": 2,
        "learn_words": {"a <p>": "x", "a <q>": "y"}, "prior_prompts": ["x", "y"], "num_prior_images": 2, "seed": 3,
        "attention_threshold": 0.0, "mask_update_steps": 2, "mask_ssim_threshold": -1, **more,
    }  # fmt: skip
    return LoraSettings.from_mappings(("the test", given))


@pytest.fixture(scope="module")
def trained(tiny_sd, data, cache, tmp_path_factory):
    """(output folder, the run) of four steps."""
    output = tmp_path_factory.mktemp("trained") / "lora"
    run = Run.open(settings(tiny_sd, data, cache, output))
    assert run.go() == output / NAMED
    return output, run


@pytest.fixture
def run(tiny_sd, data, cache, tmp_path):
    """A run before its first step, in float64, its masks by hand."""
    run = Run.open(settings(tiny_sd, data, cache, tmp_path / "lora"))
    run.pipeline.text_encoder.double()
    run.task.double()
    left = torch.zeros(run.task.taught.size, dtype=torch.float64)
    left[:, : left.shape[1] // 2] = 1
    run.task.masks.copy_(torch.stack([left, 1 - left, 0 * left]))
    with torch.no_grad():
        for value in run.adapter.parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    return run


def with_options(task, **changes):
    task.taught = dataclasses.replace(task.taught, options=dataclasses.replace(task.taught.options, **changes))


def attention_alone(run, number):
    """The attention loss of a step whose prompt has both words."""
    batch, task = run.samples.batch(number), run.task
    joined = task._joined(batch, (0, 1), number)
    reading = task.reading(joined)
    with reading.on(_rows(2)):
        task.errors(joined, torch.tensor([0.4, 0.6]), [task.generator(0, number, place) for place in range(2)])
        return attention_losses(reading.maps(task.taught.places[0, 1]), task.masks).mean()


def test_what_the_attention_loss_teaches(run):
    attention_alone(run, 1).backward()
    assert all(row.abs().max() > 0 for row in run.task.table.rows.grad)
    keys = {name: value.grad for name, value in run.adapter.parameters.items() if "to_k" in name}
    assert any(grad is not None and grad.abs().max() > 0 for grad in keys.values())
    everything = [*run.adapter.model.parameters(), *run.pipeline.text_encoder.parameters()]
    frozen = [value for value in everything if not value.requires_grad]
    assert len(frozen) > 20 and all(value.grad is None for value in frozen)


def test_gradients_are_those_of_finite_differences(run, monkeypatch):
    # The first token's key has its value and no gradient: differences would see it move.
    monkeypatch.setattr(reading_module, "_start_detached", lambda layer, given, output: output)
    attention_alone(run, 1).backward()
    name, value = next((n, v) for n, v in run.adapter.parameters.items() if "to_k" in n and "lora_B" in n)
    for parameter in (run.task.table.rows, value):
        place = parameter.grad.abs().flatten().argmax().item()
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.view(-1)[place] += step
                ends.append(attention_alone(run, 1).item())
                parameter.view(-1)[place] -= step
        found = (ends[0] - ends[1]) / 2e-6
        assert found == pytest.approx(parameter.grad.flatten()[place].item(), rel=1e-4), name


def test_the_first_token_teaches_keys_and_values_nothing(run):
    """A prompt without words of its own: what is left is the first token's row."""
    task = run.task
    joined = task._joined(run.samples.batch(0), (0, 1), 0)
    states = joined.text["states"].detach().requires_grad_()
    joined.text["states"] = states
    reading = task.reading(joined)
    with reading.on(_rows(2)):
        errors = task.errors(joined, torch.tensor([0.4, 0.6]), [task.generator(0, 0, place) for place in range(2)])
        (errors["image"].sum() + reading.maps(task.taught.places[0, 1]).square().sum()).backward()
    assert not states.grad[:, 0].any() and states.grad[:, 1].abs().max() > 0


def test_masks_of_ones_and_no_attention_loss_are_plain_training_with_a_prior(run):
    task = run.task
    with_options(task, attention_weight=0.0, update_steps=10**9, prior_weight=0.5)
    task.masks.fill_(1)
    loss, figures = task(run.samples.batch(5), 5)
    joined = task._joined(run.samples.batch(5), task.chosen(5), 5)
    joined.masks.clear()
    generators = [task.generator(0, 5, place) for place in range(2)]
    level = torch.cat([task.levels(joined).draw(1, generator) for generator in generators])
    plain = super(type(task), task)
    task._error = plain._error
    errors = task.errors(joined, level, generators)["image"]
    assert loss.item() == pytest.approx((errors[0] + 0.5 * errors[1]).item(), rel=1e-12)
    assert figures["loss picture"] == pytest.approx(errors[0].item())


def test_the_loss_counts_the_parts_of_the_words_in_the_prompt(run):
    task = run.task
    latents = run.samples.batch(0).latents["image"].double()
    left, right = (task._inside((index,), latents) for index in (0, 1))
    assert left[..., :2].min() > 0.9 and left[..., -2:].abs().max() < 0.1
    assert torch.allclose(left + right, task._inside((0, 1), latents), atol=1e-6)
    answer = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    assert task._error(answer, 0 * answer, left).item() == pytest.approx((left * answer).square().mean().item())


def test_the_result_is_loaded_by_stock_diffusers(trained, tiny_sd):
    output, run = trained
    words = sorted(path.name for path in (output / "words").iterdir())
    assert words == ["p.safetensors", "q.safetensors"]
    stock = StableDiffusionPipeline.from_pretrained(str(tiny_sd), torch_dtype=torch.float32)
    before = stock.text_encoder.get_input_embeddings().weight.clone()
    stock.load_lora_weights(str(output))
    stock.load_textual_inversion([str(output / "words" / name) for name in words])
    table = stock.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(before)], before)
    assert torch.equal(table[len(before) :], run.task.table.rows)
    assert not torch.equal(run.task.table.rows[0], before[stock.tokenizer.convert_tokens_to_ids("x</w>")])
    with torch.no_grad():
        mine = run.task._text(["a <q> on z"])["states"]
        theirs = stock.encode_prompt(["a <q> on z"], "cpu", 1, False)[0]
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_generate_reads_the_words(trained, tiny_sd):
    output, _ = trained
    given = {
        "model": str(tiny_sd), "prompt": "a <p>", "lora": str(output), "steps": 2, "height": 16, "width": 16,
        "guidance_scale": 1.0,
    }  # fmt: skip
    request = resolve(GenerateSettings.from_mappings(("the test", given)))
    session = Session(request)
    frames = session.run().frames
    assert "<p>" in session.pipeline.tokenizer.get_vocab()
    stock = StableDiffusionPipeline.from_pretrained(str(tiny_sd), torch_dtype=torch.float32)
    stock.load_lora_weights(str(output))
    stock.load_textual_inversion(str(output / "words" / "p.safetensors"))
    picture = stock(
        "a <p>", num_inference_steps=2, height=16, width=16, guidance_scale=1.0, output_type="np",
        generator=torch.Generator().manual_seed(request.settings.seed),
    ).images[0]  # fmt: skip
    assert np.abs(frames[0].astype(float) - 255 * picture).max() <= 1


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(trained, tiny_sd, data, cache, tmp_path):
    output, run = trained
    whole = load_checkpoint(output / "checkpoint-4" / "trainer.pt")
    assert whole["module"]["masks"].any() and whole["module"]["losses"].all()
    half = tmp_path / "half"
    train_lora(settings(tiny_sd, data, cache, half, max_train_steps=2))
    train_lora(settings(tiny_sd, data, cache, half, resume_from_checkpoint="latest"), told=lambda line: None)
    again = load_checkpoint(half / "checkpoint-4" / "trainer.pt")
    assert whole["module"].keys() == again["module"].keys()
    assert all(torch.equal(value, again["module"][name]) for name, value in whole["module"].items())
    with pytest.raises(UsageError, match="learn_words"):
        LoraPlan.of(
            settings(tiny_sd, data, cache, half, resume_from_checkpoint="latest", learn_words=["a <p>=y", "a <q>=y"])
        )


def test_a_dry_run_tells_the_words(tiny_sd, data, cache, tmp_path):
    from genkit.cli.train import lines_of
    from genkit.training.lora.dry_run import described

    text = "\n".join(lines_of(described(LoraPlan.of(settings(tiny_sd, data, cache, tmp_path / "lora")), None)))
    assert "words learned: <p> (begins as x), <q> (begins as y): 64 parameters in text_encoder" in text
    assert "'a <q> on z'" in text and "prior: 2 pictures" in text and "attn2.to_k" in text and "attn1" not in text


BAD = {
    "word missing in the prompt": ({"learn_words": ["a <p>=x", "a <r>=y"]}, "caption"),
    "one word": ({"learn_words": ["a <p>=x"]}, "got '1 word', allowed"),
    "one word for two": ({"learn_words": ["a <p>=x", "on <p>=y"]}, "two subjects"),
    "known word": ({"learn_words": ["a <p>=x", "a <q> on z=y"]}, "knows already"),
    "start of several tokens": ({"learn_words": ["a <p>=xx", "a <q>=y"]}, "one token"),
    "no start": ({"learn_words": ["a <p>", "a <q>=y"]}, "known word"),
    "no prior": ({"prior_prompts": []}, "--prior-weight 0"),
    "prior of no weight": ({"prior_weight": 0.0}, "no effect"),
    "dropped captions": ({"caption_dropout": 0.1}, "--caption-dropout"),
    "checkpointed gradients": ({"gradient_checkpointing": True}, "read twice"),
    "another attention": ({"attention": "neighborhood"}, "own attention"),
    "a batch of two": ({"train_batch_size": 2}, "one picture"),
    "no words": ({"learn_words": []}, "no effect without --learn-words"),
    "two sizes": ({"resolution": ["16x16", "16x8"]}, "one picture"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case, tiny_sd, data, cache, tmp_path):
    changes, told = BAD[case]
    with pytest.raises(UsageError, match=told):
        LoraPlan.of(settings(tiny_sd, data, cache, tmp_path / "lora", **changes))


def test_two_pictures_and_other_captions_are_refused(tiny_sd, data, cache, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    for name in ("one", "other"):
        (two / f"{name}.png").write_bytes((data / "two.png").read_bytes())
        (two / f"{name}.txt").write_text(CAPTION)
    with pytest.raises(UsageError, match="one picture"):
        LoraPlan.of(settings(tiny_sd, two, cache, tmp_path / "lora"))
    (two / "other.png").unlink()
    (two / "one.txt").write_text("a <p> left of a <q>")
    with pytest.raises(UsageError, match="'left of'"):
        LoraPlan.of(settings(tiny_sd, two, cache, tmp_path / "lora"))
    (two / "one.txt").write_text("a <p> and a <q> and a <p>")
    with pytest.raises(UsageError, match="more than once"):
        LoraPlan.of(settings(tiny_sd, two, cache, tmp_path / "lora"))


def test_other_families_are_refused(tiny_wan, data, cache, tmp_path):
    with pytest.raises(UnsupportedError, match="learns new words"):
        LoraPlan.of(settings(tiny_wan, data, cache, tmp_path / "lora"))


def test_words_without_a_part_are_told(run):
    run.task.masks.zero_()
    with_options(run.task, threshold=1.0)
    run.task.reading(run.task._joined(run.samples.batch(0), (0, 1), 0)).refined = lambda maps: 0 * maps
    with pytest.raises(UsageError, match="begin with words that tell"):
        run.task.find_masks(run.samples.batch(0))


def test_a_lora_without_its_words_or_with_known_ones_is_refused(trained, tiny_sd, tmp_path):
    output, _ = trained
    (tmp_path / NAMED).write_bytes((output / NAMED).read_bytes())
    pipe = genkit.load(str(tiny_sd), "float32", "cpu")
    with pytest.raises(ArtifactError, match="keep the folder words"):
        genkit.load_lora(pipe, tmp_path)
    pipe = genkit.load(str(tiny_sd), "float32", "cpu")
    genkit.load_lora(pipe, output)
    with pytest.raises(GenkitError, match="knows already"):
        genkit.load_lora(pipe, output)


def test_options_begin_as_the_settings_do():
    fields = LoraSettings.defaults()
    options = WordOptions()
    assert (options.threshold, options.ssim, options.update_steps) == (
        fields["attention_threshold"], fields["mask_ssim_threshold"], fields["mask_update_steps"],
    )  # fmt: skip


def test_a_transformer_with_joint_attention_learns_words_of_its_t5(tiny_flux, data, cache, tmp_path):
    """Without a first token that says nothing, the background is what no word looks at, and has no loss."""
    given = {"caption_extension": ".none", "caption": "a <p> and a <q> on red", "prior_prompts": ["red"]}
    given["learn_words"] = {"a <p>": "circle", "a <q>": "square"}
    run = Run.open(settings(tiny_flux, data, cache, tmp_path / "flux", max_train_steps=2, **given), lambda line: None)
    assert all("add_" in path for path in run.adapter.targets)
    before = run.task.table.rows.detach().clone()
    run.go()
    assert run.task.masks.any() and not torch.equal(run.task.table.rows, before)
    pipe = genkit.load(str(tiny_flux), "float32", "cpu")
    genkit.load_lora(pipe, tmp_path / "flux")
    number = pipe.tokenizer_2.convert_tokens_to_ids("<q>")
    assert torch.equal(pipe.text_encoder_2.get_input_embeddings().weight[number], run.task.table.rows[1])


def test_files_made_of_a_lora_keep_its_words(trained, tiny_sd, tmp_path):
    from genkit.cli.lora import convert, merge, resize
    from genkit.lora.contents import read_lora
    from genkit.lora.fold import fold

    output, _ = trained
    source = output / NAMED
    resize(str(source), tmp_path / "small" / "lora.safetensors", rank="1")
    convert(str(source), "kohya", tmp_path / "other" / "lora.safetensors")
    for name in ("small", "other"):
        pipe = genkit.load(str(tiny_sd), "float32", "cpu")
        genkit.load_lora(pipe, tmp_path / name / "lora.safetensors")
        assert {"<p>", "<q>"} <= pipe.tokenizer.get_vocab().keys()
    with pytest.raises(ArtifactError, match="another of the files"):
        merge([str(source), str(source)], tmp_path / "both.safetensors")
    with pytest.raises(UnsupportedError, match="load it as a LoRA"):
        fold([(read_lora(source), 1.0, None)], tiny_sd, tmp_path / "model")


def test_three_words_of_one_picture(tiny_sd, data, cache, tmp_path):
    given = {"caption_extension": ".none", "caption": "a <p>, a <q> and the <r>"}
    given["learn_words"] = ["the <r>=x", "a <q>=y", "a <p>=z"]
    run = Run.open(
        settings(
            tiny_sd, data, cache, tmp_path / "three", prior_weight=0, prior_prompts=[], num_prior_images=200, **given
        ),
        lambda line: None,
    )
    task = run.task
    assert task.taught.subjects.words == ("<p>", "<q>", "<r>") and task.masks.shape[0] == 4
    for index in range(4):
        task.masks[index, index] = 1
    loss, figures = task(run.samples.batch(1), 1)
    loss.backward()
    named = task.chosen(1)
    assert {index for index in range(3) if task.table.rows.grad[index].any()} == set(named)
    assert {"part <p>", "part <q>", "part <r>"} <= figures.keys() and "loss prior" not in figures
