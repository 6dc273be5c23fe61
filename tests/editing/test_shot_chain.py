"""Chained shots: which calls a chain makes, what each is given, and the clip, on tiny real models."""

import functools
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_given
import tiny_pipelines
import torch
from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

import genkit
from genkit import ShotChainPipeline, WanGivenFramesPipeline
from genkit.editing.shot_chain.plan import ChainPlan, Window, lengths
from genkit.errors import UnsupportedError, UsageError

PROMPTS = ["a red circle moves", "a red square left", "a red circle up"]


def plan(shots=3, frames=None, window=9, each=4, border=1, within=5, before=0):
    return ChainPlan.of(shots, frames, window, each, border, within, before)


def test_shots_begin_with_the_last_frame_before():
    made = plan()
    assert made.windows == (Window(0, 0, 9), Window(1, 1, 8), Window(2, 1, 8))
    assert made.spans == ((0, 9), (9, 17), (17, 25)) and made.frames == 25
    assert made.words() == "1: frames 0 to 8, 2: frames 9 to 16, 3: frames 17 to 24"


@pytest.mark.parametrize("each", [1, 4, 8])
@pytest.mark.parametrize("before", [0, 1, 7, 30])
def test_every_length_is_made_of_windows_that_the_model_has(each, before):
    window, within = 1 + 4 * each, 1 + each
    for count in range(1, 12):
        lead = each * count + (0 if before else 1)
        made = plan(2, [lead, each * count], window, each, 1, within, before)
        assert [end - first for first, end in made.spans] == [lead, each * count]
        assert made.spans[0][0] == before and made.frames == made.spans[1][1]
        shown = before
        for number, part in enumerate(made.windows):
            assert part.new > 0 and part.frames <= window and part.frames % each == 1 % each
            fresh = number == 0 or part.shot != made.windows[number - 1].shot
            wanted = within if not fresh else 1 if number else min(within, 1 + (before - 1) // each * each)
            assert part.given == (wanted if number or before else 0) <= shown
            shown += part.new


@pytest.mark.parametrize("before, kept", [(0, 0), (16, 16), (16, 0)])
def test_a_length_is_shared_among_shots(before, kept):
    for shots in (1, 2, 3):
        for units in range(shots, 9):
            total = (kept if before else 1) + 4 * (units - (not before))
            found = lengths(total, shots, 4, before, kept)
            assert sum(found) == total - kept and max(found) - min(found) <= 7
            assert plan(shots, found, before=before).frames == before + total - kept
    assert lengths(61, 3, 4) == [21, 20, 20]


WRONG = (
    (lambda: plan(window=10), "frames at once: got 10"),
    (lambda: plan(window=1), "frames at once: got 1, allowed: 1 plus a multiple of 4, 5 or more"),
    (lambda: plan(border=2), r"frames carried over \(--border-frames, border_frames\): got 2"),
    (lambda: plan(border=9), r"frames carried over \(--border-frames, border_frames\): got 9"),
    (lambda: plan(within=0), r"frames carried over \(within_frames\): got 0"),
    (lambda: plan(2, [9]), "frames: got"),
    (lambda: plan(2, [8, 8]), "shot 1 has 8 frames; take 5 or 9: 1 plus a multiple of 4"),
    (lambda: plan(2, [9, 9]), "shot 2 has 9 frames; take 8 or 12: a multiple of 4"),
    (lambda: plan(2, [9, 3]), "shot 2 has 3 frames; take 4"),
    (lambda: plan(1, [9], before=9), "shot 1 has 9 frames; take 8 or 12"),
    (lambda: lengths(60, 3, 4), "got 60, allowed: 1 plus a multiple of 4; take 57 or 61"),
    (lambda: lengths(5, 3, 4), "got 5, allowed: 1 plus a multiple of 4; take 9"),
    (lambda: lengths(16, 1, 4, 16), "the clip's 16 plus a multiple of 4; take 20"),
    (lambda: lengths(7, 1, 4, 16, 0), "allowed: a multiple of 4; take 4 or 8"),
)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_lengths_that_do_not_fit_name_those_that_do(number):
    make, words = WRONG[number]
    with pytest.raises(UsageError, match=words.replace("+", "\\+")):
        make()


@pytest.fixture(autouse=True)
def _no_ftfy(monkeypatch):
    for module in (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@functools.cache
def pipe_of(kind):
    stock = {
        "given frames": tiny_pipelines.wan, "cogvideox": tiny_pipelines.cogvideox_image,
        "wan 5B": lambda: tiny_pipelines.wan_image("5B"), "wan 2.1": lambda: tiny_pipelines.wan_image("2.1"),
        "ltx": lambda: tiny_pipelines.ltx(True), "hunyuan": tiny_given.hunyuan_image_to_video,
    }  # fmt: skip
    made = stock[kind]()
    made = WanGivenFramesPipeline.from_pipe(made) if kind == "given frames" else made
    made.set_progress_bar_config(disable=True)
    return made


#: Kind -> size, frames at once, text slots, words before every prompt.
KINDS = {
    "given frames": ((32, 32), 9, 8, ""), "wan 5B": ((32, 32), 9, 8, ""), "wan 2.1": ((32, 32), 9, 8, ""),
    "cogvideox": ((64, 80), 9, 5, ""), "ltx": ((32, 64), 9, 8, ""), "hunyuan": ((48, 48), 9, 16, "a " * 110),
}  # fmt: skip


def chain(kind, seed=0, count=2, **changes):
    (height, width), window, slots, lead = KINDS[kind]
    own = pipe_of(kind)
    options = {
        "height": height,
        "width": width,
        "window_frames": window,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
    }
    if "max_sequence_length" in inspect.signature(type(own).__call__).parameters:
        options["max_sequence_length"] = slots
    prompts = [lead + prompt for prompt in PROMPTS[:count]]
    generator = torch.Generator().manual_seed(seed)
    return ShotChainPipeline(own)(prompts, generator=generator, **options | changes)


def picture(size, seed=0):
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_on_every_family(kind):
    size = KINDS[kind][0]
    made = chain(kind, image=picture(size))
    assert made.frames.shape == (17, *size, 3) and made.frames.dtype == np.uint8 and made.frames.std() > 1
    assert [len(made.shot(number)) for number in (0, 1)] == [9, 8] and len(made.new) == 17
    assert np.array_equal(made.frames, chain(kind, image=picture(size)).frames)
    other = chain(kind, image=picture(size, 1)).frames
    assert not np.array_equal(made.frames, other)


class Calls:
    """A pipeline whose frames count the calls: what each was given is kept."""

    transformer = None

    def __init__(self, count=None):
        self.asked, self.count = [], count

    def __call__(self, prompt=None, image=None, beginning=None, last_image=None, height=0, width=0, num_frames=81,
                 generator=None, output_type="np", callback_on_step_end=None):  # fmt: skip
        self.asked.append({name: value for name, value in locals().items() if name != "self"})
        frames = np.full((1, self.count or num_frames, height, width, 3), len(self.asked) / 10)
        frames += np.arange(frames.shape[1])[None, :, None, None, None] / 255
        return type("Made", (), {"frames": frames})()


def test_each_shot_is_given_the_last_frame_and_its_prompt():
    pipe = Calls()
    made = ShotChainPipeline(pipe)(PROMPTS, [5, 4, 12], height=16, width=16, window_frames=9)
    # Frames behind a latent one are those of the family; a pipeline of no family has one behind each.
    assert [each["prompt"] for each in pipe.asked] == [PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[2]]
    assert pipe.asked[0]["image"] is None and pipe.asked[0]["beginning"] is None
    assert np.array_equal(np.asarray(pipe.asked[1]["image"]), made.frames[4])
    assert np.array_equal(np.asarray(pipe.asked[2]["image"]), made.frames[8])
    carried = pipe.asked[3]["beginning"]
    assert len(carried) == 3 and np.array_equal(carried, made.frames[15 - len(carried) : 15])
    assert len(made.frames) == 21 and made.plan.spans == ((0, 5), (5, 9), (9, 21))
    # The frames that were given are not repeated.
    assert made.frames[5, 0, 0, 0] == round(0.2 * 255) + 1


def test_a_clip_is_continued_by_its_last_frames_and_stays_as_it_is():
    clip = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
    pipe = pipe_of("given frames")
    seen = []
    hook = pipe.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    made = chain("given frames", count=1, clip=clip, frames=[4])
    hook.remove()
    assert np.array_equal(made.frames[:11], clip) and made.frames.shape[0] == 15 and len(made.new) == 4
    assert made.plan.windows == (Window(0, 5, 4),) and seen
    moved = chain("given frames", count=1, clip=np.concatenate([clip[:6], 255 - clip[6:]]), frames=[4])
    assert not np.array_equal(moved.new, made.new)
    early = chain("given frames", count=1, clip=np.concatenate([255 - clip[:6], clip[6:]]), frames=[4])
    assert np.array_equal(early.new, made.new)


def test_a_last_frame_belongs_to_the_last_call():
    pipe, last = Calls(), picture((16, 16))
    ShotChainPipeline(pipe)(PROMPTS[:2], height=16, width=16, window_frames=5, last_image=last)
    assert [each["last_image"] for each in pipe.asked] == [None, last]


def test_the_first_shot_can_be_of_another_pipeline():
    first, then = Calls(), Calls()
    ShotChainPipeline(then, first)(PROMPTS[:2], height=16, width=16, window_frames=5)
    assert [len(pipe.asked) for pipe in (first, then)] == [1, 1] and first.asked[0]["image"] is None
    ShotChainPipeline(then, first)(PROMPTS[:2], height=16, width=16, window_frames=5, image=picture((16, 16)))
    assert len(first.asked) == 1 and len(then.asked) == 3


def test_progress_counts_all_calls():
    told = []
    chain("given frames", progress=lambda done, total, latents: told.append((done, total, latents.shape[2])))
    assert told == [(1, 4, 3), (2, 4, 3), (3, 4, 3), (4, 4, 3)]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image": picture((32, 32)), "clip": np.zeros((5, 32, 32, 3), np.uint8)}, UsageError, "give one of them"),
        ({"clip": np.zeros((5, 16, 16, 3), np.uint8)}, UsageError, "clip: got '16x16 pixels', allowed: 32x32"),
        ({"clip": np.zeros((5, 32, 32, 3))}, UsageError, "uint8"),
        ({"frames": [8, 8]}, UsageError, "shot 1 has 8 frames"),
        ({"window_frames": 8}, UsageError, "frames at once"),
        ({"border_frames": 9}, UsageError, "frames carried over"),
    ],
)
def test_what_does_not_fit(changes, error, words):
    with pytest.raises(error, match=words):
        chain("given frames", **changes)


def test_pipelines_that_cannot():
    with pytest.raises(UnsupportedError, match="takes no first frame"):
        ShotChainPipeline(tiny_pipelines.wan())
    with pytest.raises(UnsupportedError, match="no beginning of several"):
        chain("wan 5B", image=picture((32, 32)), border_frames=5)
    with pytest.raises(UnsupportedError, match="takes no last frame"):
        chain("ltx", image=picture((32, 64)), last_image=picture((32, 64)))
    with pytest.raises(UsageError, match="needs a first frame"):
        chain("wan 5B")
    with pytest.raises(UnsupportedError, match="made 3 frames where 5 were asked for"):
        ShotChainPipeline(Calls(3))(PROMPTS, height=16, width=16, window_frames=5)
    with pytest.raises(UsageError, match="prompts"):
        ShotChainPipeline(Calls())([], height=16, width=16)
    assert not genkit.patches(pipe_of("given frames"))
