"""DiTCtrl on tiny real models: Wan, CogVideoX and HunyuanVideo."""

import functools

import numpy as np
import pytest
import tiny_pipelines
import torch

import genkit
from genkit.editing.ditctrl import DiTCtrlPipeline
from genkit.errors import UnsupportedError, UsageError

PROMPTS = ["a red circle moves", "a red square left"]
#: What the template of HunyuanVideo's prompts is cut off by, in words; its own are fewer in a tokenizer of words.
CUT = "a " * 30
SLOTS = {"cogvideox": 5, "hunyuan_video": 48}
SIZE = {"wan": (16, 32), "wan folder": (32, 32), "cogvideox": (64, 80), "hunyuan_video": (16, 32)}
KINDS = tuple(SIZE)


@pytest.fixture(scope="module")
def pipe(tiny_wan):
    @functools.cache
    def made(kind):
        if kind == "wan folder":
            found = genkit.load(tiny_wan)
        elif kind == "cogvideox":
            found = tiny_pipelines.cogvideox("cogvideox")
        else:
            found = getattr(tiny_pipelines, kind)()
        found.set_progress_bar_config(disable=True)
        return found

    return made


def texts(kind, prompts):
    return [CUT + prompt if kind == "hunyuan_video" else prompt for prompt in prompts]


def call(pipe, kind, prompts=PROMPTS, seed=0, **changes):
    height, width = SIZE[kind]
    options = {"height": height, "width": width, "tile_frames": 9, "overlap": 1, "num_inference_steps": 2,
               "guidance_scale": 3.0, "max_sequence_length": SLOTS.get(kind, 8),
               "sharing_layers": ":", "sharing_steps": (0.0, 1.0)}  # fmt: skip
    own = DiTCtrlPipeline.from_pipe(pipe)
    prompts = texts(kind, prompts) if isinstance(prompts, list) else prompts
    return own(prompts, generator=torch.Generator().manual_seed(seed), **options | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_of_two_prompts_on_every_family(kind, pipe):
    made = call(pipe(kind), kind)
    assert made.plan.total == 7 and made.frames.shape == (25, *SIZE[kind], 3)
    assert made.frames.dtype == np.uint8 and made.frames.std() > 1
    assert [len(made.shot(number)) for number in range(2)] == [11, 14]
    assert not genkit.patches(pipe(kind))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sharing_changes_what_is_made_and_masks_change_it_again(kind, pairs, pipe):
    made = {
        form: call(pipe(kind), kind, sharing=form, pairs=pairs, **({"words": ("red",)} if form == "mask" else {}))
        for form in ("none", "kv", "mask")
    }
    assert not torch.equal(made["none"].latents, made["kv"].latents)
    assert not torch.equal(made["mask"].latents, made["kv"].latents)
    # the first tile reads nobody: frames that only it sees stay where the solver and the pairs leave them
    assert all(bool(torch.isfinite(each.latents).all()) for each in made.values())


@pytest.mark.parametrize("kind", KINDS)
def test_without_steps_to_share_it_is_plain_tiling(kind, pipe):
    assert torch.equal(
        call(pipe(kind), kind, sharing_steps=(0.5, 0.5)).latents, call(pipe(kind), kind, sharing="none").latents
    )


@pytest.mark.parametrize("kind", ["wan", "hunyuan_video", "cogvideox"])
def test_a_target_like_its_source_is_not_changed_by_sharing(kind, pipe):
    """Same prompt, same noise, same places: the keys that are taken are one's own."""
    from genkit.editing.ditctrl.plan import Plan, Tile
    from genkit.editing.ditctrl.sharing import Sharing
    from genkit.editing.ditctrl.tiles import Texts, TileCalls
    from genkit.editing.shared.model import EditModel

    model, (height, width) = EditModel.of(pipe(kind)), SIZE[kind]
    latents = model.encode(np.zeros((9, height, width, 3), np.uint8)) + 0.5
    plan = Plan(latents.shape[2], (Tile(0, (1.0,)), Tile(0, (1.0,))), ())
    told = Texts.of(model, plan, texts(kind, PROMPTS[:1]), texts(kind, [""]), SLOTS.get(kind, 8))
    answers = []
    for form in ("kv", "none"):
        calls = TileCalls(model, plan, told, 3.0, Sharing(form, ":", (0.0, 1.0)), True)
        with calls.shared():
            answers.append(calls(latents, 0.6, 0, 2))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["wan folder", "hunyuan_video", "cogvideox"])
def test_one_prompt_in_one_tile_is_the_stock_pipeline(kind, pipe):
    """Texts, noise, guidance, noise levels and steps of the scheduler: those of the pipeline itself."""
    from genkit.editing.ditctrl.plan import Plan, Tile
    from genkit.editing.ditctrl.sharing import Sharing
    from genkit.editing.ditctrl.tiles import Texts, TileCalls
    from genkit.editing.shared.model import EditModel
    from genkit.editing.shared.solver import Solver

    stock, (height, width) = pipe(kind), SIZE[kind]
    slots, steps = SLOTS.get(kind, 8), 3
    model = EditModel.of(stock)
    noise = model.draw(model.encode(np.zeros((9, height, width, 3), np.uint8)), torch.Generator().manual_seed(3))
    plan = Plan(noise.shape[2], (Tile(0, (1.0,)),), ())
    calls = TileCalls(
        model,
        plan,
        Texts.of(model, plan, texts(kind, PROMPTS[:1]), texts(kind, [""]), slots),
        3.0,
        Sharing("none"),
        True,
    )
    solver = Solver(model, steps, noise)
    latents = solver.begin(noise)
    for index, level in enumerate(solver.levels):
        latents = solver.step(index, calls(solver.seen(latents, index), level, index, steps), latents)
    given = noise.transpose(1, 2) if kind == "cogvideox" else noise
    options = {} if kind == "hunyuan_video" else {"negative_prompt": ""}
    expected = stock(
        prompt=texts(kind, PROMPTS)[0], height=height, width=width, num_frames=9, num_inference_steps=steps,
        guidance_scale=3.0, latents=given, max_sequence_length=slots, output_type="latent", **options,
    ).frames  # fmt: skip
    expected = expected.transpose(1, 2) if kind == "cogvideox" else expected
    torch.testing.assert_close(latents, expected.float(), rtol=2e-3, atol=2e-3)


def test_no_overlap_gives_clips_of_their_own(pipe):
    """Two tiles side by side, nothing shared: what each would be alone."""
    made = call(pipe("wan"), "wan", overlap=0, transitions=0, sharing="none")
    shared = call(pipe("wan"), "wan", overlap=0, transitions=0)
    assert torch.equal(made.latents[:, :, :3], shared.latents[:, :, :3])
    assert not torch.equal(made.latents[:, :, 3:], shared.latents[:, :, 3:])


def test_the_sampler_that_the_method_was_made_with(pipe):
    from diffusers import CogVideoXDPMScheduler

    stock = pipe("cogvideox")
    before = stock.scheduler
    stock.scheduler = CogVideoXDPMScheduler.from_config(before.config)
    try:
        made = call(stock, "cogvideox", num_inference_steps=3)
        again = call(stock, "cogvideox", num_inference_steps=3)
    finally:
        stock.scheduler = before
    assert torch.equal(made.latents, again.latents) and bool(torch.isfinite(made.latents).all())


def test_lengths_are_followed_and_progress_is_told(pipe):
    told = []
    made = call(
        pipe("wan"), "wan", [*PROMPTS, PROMPTS[0]], frames=(13, 12, 12),
        progress=lambda done, total, latents: told.append((done, total, latents.shape[2])),
    )  # fmt: skip
    assert len(made.frames) == 37 and made.plan.spans == ((0, 13), (13, 25), (25, 37))
    assert told == [(1, 2, made.plan.total), (2, 2, made.plan.total)]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompts": PROMPTS[:1]}, "one prompt alone"),
        ({"prompts": "a red circle"}, "a list of texts"),
        ({"frames": (13,)}, "one for each of 2 prompts"),
        ({"frames": (13, 13)}, "give shot 2 12 or 16 frames"),
        ({"frames": (13, 12), "longer_middle": 1}, "exclude each other"),
        ({"tile_frames": 10}, "tile_frames: got 10, allowed: 1 plus a multiple of 4"),
        ({"sharing": "both"}, "sharing: got 'both', allowed: kv, mask, none"),
        ({"sharing": "mask"}, "needs words"),
        ({"words": ("red",)}, "words are for"),
        ({"sharing": "mask", "words": ("square",)}, "shot 1: word"),
        ({"sharing_steps": (0.5, 0.1)}, "sharing steps"),
        ({"threshold": 1.0, "sharing": "mask", "words": ("red",)}, "threshold"),
        ({"negative_prompt": ["a"]}, "one, or 2"),
    ],
)
def test_wrong_calls_say_why(changes, words, pipe):
    prompts = changes.pop("prompts", PROMPTS)
    with pytest.raises(UsageError, match=words):
        call(pipe("wan"), "wan", prompts, **changes)


def test_a_decoder_that_takes_two_latent_frames_asks_for_an_odd_number(pipe):
    with pytest.raises(UsageError, match="2 latent frames at a time: give shots of 25 or 33 frames"):
        call(pipe("cogvideox"), "cogvideox", frames=(17, 12))


@pytest.mark.parametrize("kind, words", [("cogvideox_15", "holds 2 latent frames"), ("flux", "FluxPipeline")])
def test_models_that_take_none_are_refused(kind, words, tiny_flux):
    from genkit.pipelines.load import load

    stock = load(tiny_flux, torch.float32, "cpu") if kind == "flux" else tiny_pipelines.cogvideox(kind)
    with pytest.raises(UnsupportedError, match=words):
        DiTCtrlPipeline.from_pipe(stock)
