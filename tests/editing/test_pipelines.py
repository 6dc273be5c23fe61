"""Every editing pipeline on a tiny model of every kind, with stock schedulers."""

import numpy as np
import pytest
import tiny
import tiny_pipelines
import torch

from genkit.editing.flow_edit import FlowEditPipeline
from genkit.editing.image_to_image import ImageToImagePipeline
from genkit.editing.infedit import InfEditPipeline
from genkit.editing.prompt_to_prompt import PromptToPromptPipeline
from genkit.editing.shared import EditModel
from genkit.errors import GenkitError, UnsupportedError, UsageError
from genkit.pipelines.load import load

SOURCE, TARGET = "a red circle on blue", "a green circle on blue"
UNETS, FLOWS = ("sd", "sdxl", "lcm"), ("flux", "sd3", "wan")


def picture(kind, height=20, width=28):
    """A picture, or a clip of two frames, of a size that no model takes as it is."""
    frames = np.random.default_rng(0).integers(0, 256, (2 if kind == "wan" else 1, height, width, 3), dtype=np.uint8)
    return frames if kind == "wan" else frames[0]


def reconstruction(pipe, image):
    """What the autoencoder makes of the padded picture, cut to its size."""
    from genkit.editing.shared.pipeline import Work

    model = EditModel.of(pipe)
    work = Work.of(model, image)
    return work.crop(model.decode(model.encode(work.frames)))


def close(one, other):
    return np.abs(one.astype(int) - other).max() <= 2


@pytest.mark.parametrize("kind", UNETS + FLOWS)
@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 0.7}], ids=["alone", "with control"])
def test_infedit_of_one_prompt_is_the_autoencoders_picture(kind, options, pipe_of):
    pipe, image = pipe_of(kind), picture(kind)
    call = InfEditPipeline.from_pipe(pipe)
    made = call(image, SOURCE, SOURCE, num_inference_steps=3, guidance_scale=1.0, **options)
    assert made.frames.shape == (image if kind == "wan" else image[None]).shape
    assert close(made.frames, reconstruction(pipe, image))


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_infedit_with_control_and_words_changes_the_picture_and_leaves_the_model_as_it_was(kind, pipe_of):
    pipe, image, steps = pipe_of(kind), picture(kind), []
    model = EditModel.of(pipe)
    latents = model.encode(padded(model, image))
    before = model.predict(latents, 0.5, model.texts([SOURCE]))
    made = InfEditPipeline.from_pipe(pipe)(
        image, TARGET, SOURCE, num_inference_steps=4, guidance_scale=3.0, keep=0.5, words=["green"],
        threshold=0.3, generator=torch.Generator().manual_seed(0), progress=lambda *told: steps.append(told[:2]),
    )  # fmt: skip
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert made.details["mask"].shape[2:] == latents.shape[2:]
    assert not torch.allclose(made.latents, latents, atol=1e-3)
    assert torch.equal(before, model.predict(latents, 0.5, model.texts([SOURCE])))


@pytest.mark.parametrize("kind", UNETS + FLOWS)
@pytest.mark.parametrize("keep", [0, 1.0])
def test_infedit_keeps_named_things_as_they_are_in_the_input(kind, keep, pipe_of):
    pipe, image = pipe_of(kind), picture(kind)
    model = EditModel.of(pipe)
    latents = model.encode(padded(model, image))

    def made(words, steps, seed=0):
        return InfEditPipeline.from_pipe(pipe)(
            image, TARGET, SOURCE, num_inference_steps=steps, guidance_scale=3.0, keep=keep, keep_words=words,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    for steps in (1, 3):
        found = made(["circle"], steps)
        kept = found.details["kept"]
        assert kept.shape[2:] == latents.shape[2:] and kept.any() and not kept.all()
        everywhere = kept.expand_as(latents)
        assert torch.equal(found.latents[everywhere], latents[everywhere])
        assert not torch.allclose(found.latents[~everywhere], latents[~everywhere], atol=1e-3)
    # Where things are is no question of chance, and they are shut out elsewhere: the rest comes out otherwise.
    assert torch.equal(made(["circle"], 3, seed=1).details["kept"], kept)
    free = made([], 3)
    assert "kept" not in free.details
    assert not torch.allclose(free.latents[~everywhere], found.latents[~everywhere], atol=1e-6)
    with pytest.raises(UsageError, match="green"):
        made(["green"], 3)  # the source prompt does not have it


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_where_words_act_in_a_picture_is_looked_up_at_as_much_noise_as_signal(kind, pipe_of, monkeypatch):
    from genkit.editing.shared.blend import acting

    pipe, levels = pipe_of(kind), []
    model = EditModel.of(pipe)
    latents = model.encode(padded(model, picture(kind)))
    predict = EditModel.predict
    monkeypatch.setattr(EditModel, "predict", lambda self, *call, **more: (
        levels.append((call[1], len(call[0]))), predict(self, *call, **more))[1])  # fmt: skip
    found = acting(model, latents, SOURCE, ("circle", "blue"))
    assert found.shape == (1, 1, *latents.shape[2:]) and found.min() == 0 and found.max() == 1
    ((level, rows),) = levels
    signal, spread = model.parts(level)
    assert rows == 1 and signal == pytest.approx(spread, abs=0.01)


def padded(model, image):
    from genkit.editing.shared.pipeline import Work

    return Work.of(model, image).frames


@pytest.mark.parametrize("kind", FLOWS)
def test_flow_edit_of_one_prompt_is_the_autoencoders_picture_and_of_another_is_not(kind, pipe_of):
    pipe, image = pipe_of(kind), picture(kind)
    call = FlowEditPipeline.from_pipe(pipe)
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "source_guidance_scale": 2.0, "strength": 0.7}
    kept = call(image, SOURCE, SOURCE, **options)
    assert close(kept.frames, reconstruction(pipe, image))
    changed = call(image, TARGET, SOURCE, **options | {"guidance_scale": 9.0}, draws=2, plain_steps=1)
    assert not close(changed.frames, kept.frames)


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_prompt_to_prompt_follows_the_path_of_the_source(kind, pipe_of):
    pipe, image = pipe_of(kind), picture(kind)
    call = PromptToPromptPipeline.from_pipe(pipe)
    made = call(image, SOURCE, SOURCE, num_inference_steps=3, guidance_scale=1.0, exact=True, keep=0, words=["circle"],
                threshold=2.0)  # fmt: skip
    # Nothing is inside the mask: all of it is the source's path, which ends in the input.
    assert close(made.frames, reconstruction(pipe, image))
    other = call(image, TARGET, SOURCE, num_inference_steps=3, guidance_scale=6.0)
    assert not close(other.frames, made.frames)


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_image_to_image_runs_its_share_of_the_steps(kind, pipe_of):
    pipe, steps = pipe_of(kind), []
    call = ImageToImagePipeline.from_pipe(pipe)
    options = {"strength": 0.5, "eta": 1.0, "progress": lambda *told: steps.append(told[0])}
    made = call(picture(kind), TARGET, num_inference_steps=4, **options)
    assert steps == [1, 2] and made.frames.shape[1:3] == (20, 28)


def test_image_to_image_from_noise_alone_is_the_stock_pipeline(pipe_of):
    pipe = pipe_of("sd")
    noise = torch.Generator().manual_seed(5)
    wanted = pipe(SOURCE, height=16, width=16, num_inference_steps=3, guidance_scale=2.0, generator=noise,
                  output_type="np").images[0]  # fmt: skip
    made = ImageToImagePipeline.from_pipe(pipe)(
        np.zeros((16, 16, 3), np.uint8), SOURCE, strength=1.0, num_inference_steps=3, guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    assert np.abs(made.frames[0] - wanted * 255).max() < 2


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_levels_are_those_at_which_the_stock_pipeline_samples(kind, pipe_of, monkeypatch):
    pipe = pipe_of(kind)
    model = EditModel.of(pipe)
    seen = []
    step = type(pipe.scheduler).step

    def watched(self, answer, timestep, *more, **named):
        seen.append(float(timestep))
        return step(self, answer, timestep, *more, **named)

    monkeypatch.setattr(type(pipe.scheduler), "step", watched)
    size = {"height": 32, "width": 48, "num_frames": 5} if kind == "wan" else {"height": 16, "width": 16}
    if kind == "wan":
        size["max_sequence_length"] = 16
    pipe(SOURCE, num_inference_steps=3, output_type="latent", **size)
    like = model.encode(np.zeros((5, 32, 48, 3) if kind == "wan" else (16, 16, 3), np.uint8))
    levels = model.levels(3, like)
    assert levels[-1] == 0 and len(levels) == 4
    told = [1000 * level if model.flow else int(level * 1000) for level in levels[:-1]]
    assert told == pytest.approx(seen, abs=1)


def test_a_model_with_an_embedded_guidance_gets_a_value_for_each_row(tmp_path):
    from tiny_flux import build_tiny_flux

    pipe = load(build_tiny_flux(tmp_path / "guided", guidance_embeds=True), torch.float32, "cpu")
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["guidance"].tolist()), with_kwargs=True
    )
    made = FlowEditPipeline.from_pipe(pipe)(picture("flux"), TARGET, SOURCE, num_inference_steps=2, strength=0.5)
    assert seen == [[1.5, 5.5]] and made.frames.shape == (1, 20, 28, 3)


def test_two_denoisers_are_asked_at_their_levels():
    pipe = tiny_pipelines.wan(experts=True, boundary_ratio=0.5)
    model = EditModel.of(pipe)
    assert model.network(0.9) is pipe.transformer and model.network(0.3) is pipe.transformer_2


@pytest.mark.parametrize("kind", ["qwen_image", "ltx"])
def test_further_families_give_the_autoencoders_picture_for_one_prompt(kind):
    pipe = getattr(tiny_pipelines, kind)()
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    made = InfEditPipeline.from_pipe(pipe)(
        image, SOURCE, SOURCE, num_inference_steps=2, guidance_scale=1.0, keep=0, max_sequence_length=16
    )  # fmt: skip
    assert made.frames.shape == (1, 64, 96, 3)
    assert close(made.frames, reconstruction(pipe, image))


def test_flow_edit_refuses_a_diffusion_model(pipe_of):
    with pytest.raises(UnsupportedError, match="flow models .*infedit"):
        FlowEditPipeline.from_pipe(pipe_of("sd"))


def test_a_pipeline_of_sound_or_given_pictures_is_refused():
    with pytest.raises(GenkitError, match="pictures beside the text"):
        EditModel.of(tiny_pipelines.flux_kontext())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"words": ["zebra"]}, "zebra"),
        ({"keep": 1.5}, "0 to 1"),
        ({"num_inference_steps": 0}, "1 or more"),
        ({"spacing": "even"}, "own, lcm"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "allowed"),
        ({"image": np.zeros((2, 16, 16, 3), np.uint8)}, "clip of 2 frames"),
        ({"image": "picture.png"}, "a PIL picture"),
        ({"strength": -0.1}, "0 to 1"),
        ({"strength": 0.0}, "leaves no step to run"),
        ({"new_words": "bound"}, "paired, free"),
    ],
)
def test_what_makes_no_sense_is_refused(change, said, pipe_of):
    options = {"image": picture("sd"), "num_inference_steps": 2, **change}
    with pytest.raises(UsageError, match=said):
        InfEditPipeline.from_pipe(pipe_of("sd"))(options.pop("image"), TARGET, SOURCE, **options)


def test_free_new_words_have_no_partner_in_the_source(pipe_of):
    """Gaps between shared words stay open, and there are as many text tokens as the denoiser reads."""
    from genkit.editing.shared.prompts import aligned, positions

    pipe = pipe_of("sd")
    states = tuple(EditModel.of(pipe).texts(["a red cat", "a blue cat"]).tensors["states"])
    place = positions(pipe, "a blue cat", ("cat",))[0]
    paired, free = (aligned(pipe, "a red cat", "a blue cat", states, fill=fill) for fill in (True, False))
    gap = [number for number, partner in enumerate(free.source[:place]) if partner is None]
    assert gap and set(paired.matched) & set(gap) and set(free.matched) < set(paired.matched)
    assert len(free.source) == len(paired.source) == len(states[0]) and free.matched[-1] == len(states[0]) - 1
    options = {"num_inference_steps": 2, "keep": 1.0, "guidance_scale": 2.0}
    edit, drawn = InfEditPipeline.from_pipe(pipe), []
    for new_words in ("paired", "free"):
        generator = torch.Generator().manual_seed(1)
        made = edit(picture("sd"), "a blue cat", "a red cat", new_words=new_words, generator=generator, **options)
        drawn.append(made.latents)
    assert not torch.equal(*drawn)


def test_rows_of_the_layout_are_those_of_the_source_while_its_early_phase_lasts():
    """Published form with three branches throughout: what the run saves by leaving the layout out."""
    from genkit.control import Control, Rows, Take

    unet = tiny.build("unet").model
    latents, states = torch.randn(1, 4, 8, 8), torch.randn(2, 7, unet.config.cross_attention_dim)
    text = states[[0, 1, 0]]
    with torch.no_grad(), Control(unet, [Take("qkv", "source", "layout"), Take("qk", "source", "target")]) as control:
        control.begin(step=0, steps=3, rows=Rows.of("source", "target", "layout", guided=False))
        answer = unet(latents.expand(3, -1, -1, -1), 500, encoder_hidden_states=text).sample
    torch.testing.assert_close(answer[2], answer[0])
    assert not torch.allclose(answer[1], answer[0])


def test_an_offloaded_autoencoder_is_given_pixels_where_it_computes():
    from accelerate import cpu_offload_with_hook

    from genkit.families.codec import device_of

    vae = tiny_pipelines.picture_vae()
    assert device_of(vae) == torch.device("cpu")
    cpu_offload_with_hook(vae, torch.device("meta"))
    assert next(vae.parameters()).device == torch.device("cpu") and device_of(vae) == torch.device("meta")


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_words_for_what_stays_are_blind_only_far_from_it_and_only_where_maps_are_free(kind, pipe_of):
    from genkit.editing.infedit.kept import Kept
    from genkit.editing.shared.blend import acting

    pipe = pipe_of(kind)
    model = EditModel.of(pipe)
    latents = model.encode(padded(model, picture(kind)))
    found = acting(model, latents, SOURCE, ("circle",))
    given = (model, pipe, latents, (SOURCE, TARGET), ("circle",), 0.6, None)
    kept = Kept.of(*given, "1:3")
    assert torch.equal(kept.mask, found > 0.6)
    (rule,) = kept.rules
    assert rule.weight == 0 and rule.where.conditional and torch.equal(rule.region > 0, (found < 0.3)[0, 0])
    assert not (kept.mask[0, 0] & (rule.region > 0)).any()
    assert Kept.of(*given, None).rules == ()
    assert Kept.usual(0.0) < Kept.usual(0.7)


@pytest.mark.parametrize("kind", UNETS + FLOWS)
def test_where_something_goes_is_looked_up_and_elsewhere_the_result_is_the_input(kind, pipe_of, monkeypatch):
    from genkit.editing.infedit.gone import Gone

    pipe, image, rows = pipe_of(kind), picture(kind), []
    model = EditModel.of(pipe)
    latents = model.encode(padded(model, image))
    predict = EditModel.predict
    monkeypatch.setattr(EditModel, "predict", lambda self, *call, **more: (
        rows.append(len(call[0])), predict(self, *call, **more))[1])  # fmt: skip
    given = model, pipe, latents, (SOURCE, TARGET), ("red",)
    gone = Gone.of(*given, (), 0.25, None)
    assert sum(rows) == 5
    assert gone.mask.dtype == torch.bool and gone.mask.shape == (1, 1, *latents.shape[2:]) and gone.mask.any()
    assert (Gone.of(*given, (), 0.9, None).mask <= gone.mask).all()
    # Words that are named are blind in the hole in any case.
    (rule,) = Gone.of(*given, ("circle",), 0.25, None).rules
    assert rule.weight == 0 and rule.into == "target" and rule.where.conditional and rule.where.steps is None

    def made(seed, **options):
        return InfEditPipeline.from_pipe(pipe)(
            image, TARGET, SOURCE, num_inference_steps=3, guidance_scale=3.0, keep=0.0, keep_maps=0.5,
            generator=torch.Generator().manual_seed(seed), **options,
        )  # fmt: skip

    everywhere = made(0).latents
    for options in ({}, {"keep_words": ["circle"]}):
        found = made(0, source_words=["red"], source_threshold=0.9, **options)
        outside = ~found.details["gone"].expand_as(latents)
        assert outside.any() and "kept" not in found.details
        assert torch.equal(found.latents[outside], latents[outside])
        assert not torch.allclose(everywhere[outside], latents[outside], atol=1e-3)
        assert torch.equal(made(1, source_words=["red"], source_threshold=0.9, **options).details["gone"],
                           found.details["gone"])  # fmt: skip
    with pytest.raises(UsageError, match="green"):
        made(0, source_words=["green"])  # the source prompt does not have it


def test_a_word_acts_elsewhere_where_it_is_faint_around_what_goes():
    from genkit.editing.infedit.gone import _acts_elsewhere

    surely, around = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    surely[..., 3:5, 3:5] = True
    around[..., 2:6, 2:6] = True
    around &= ~surely
    ground, corner = torch.where(surely, 0.01, 0.5), torch.zeros(1, 1, 8, 8)
    corner[..., :2, :2] = 1.0
    assert _acts_elsewhere(corner, surely, around) and not _acts_elsewhere(ground, surely, around)
    assert not _acts_elsewhere(corner, surely, torch.zeros_like(around))  # nothing is around: nothing is known


@pytest.mark.parametrize("model", ["toy-image", "toy-dit"])
def test_the_place_of_what_goes_is_found_on_pictures_of_the_shipped_models(model):
    import genkit
    from genkit.editing.infedit.gone import Gone
    from genkit.editing.shared.prompts import positions
    from genkit.evaluation.edits import draw_edits
    from genkit.pipelines.tasks.edit.words import differing

    pipe = genkit.load(model)
    edit = EditModel.of(pipe)
    for case in draw_edits("remove", 3, seed=5):
        source = edit.encode(padded(edit, case.source))
        prompts = case.source_prompt, case.target_prompt
        gone = Gone.of(edit, pipe, source, prompts, differing(*prompts[::-1]), (), 0.25, None)
        true = torch.from_numpy(~case.stay)[None, None].float()
        true = torch.nn.functional.interpolate(true, source.shape[2:], mode="area") > 0.5
        assert (gone.mask & true).sum() > 0.9 * true.sum()
        assert (gone.mask & ~true).sum() < 0.8 * true.sum()
        (rule,) = gone.rules  # no second one of what stays comes in its place
        (stays,), shapes = case.after.actors, [actor.shape for actor in case.before.actors]
        own = (stays.colour, *([stays.shape] if shapes.count(stays.shape) == 1 else ()))
        assert set(positions(pipe, prompts[1], own)) <= set(rule.tokens)
        assert not set(rule.tokens) & set(positions(pipe, prompts[1], (case.after.background,)))
