"""A stream is what its chunks are from scratch; it can be shared, reset, told another prompt, and does not grow."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from streams import SIZE, Naive, sampled, skyreels, wan

from genkit import WanGivenFramesPipeline, patch
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.families.wan import CODEC
from genkit.kernels import block_sparse_attention
from genkit.patching import unrotated
from genkit.streaming import Stream, best_blocks

CACHED = {"context": "cache", "chunk": 2, "sink": 1, "recent": 2, "trained": 6, **SIZE}
FRAMES = {"context": "frames", "recent": 2, "trained": 4, **SIZE}


@pytest.fixture(autouse=True)
def _no_ftfy(monkeypatch):
    from types import SimpleNamespace

    from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_diffusion_forcing
    from diffusers.pipelines.wan import pipeline_wan

    for module in (pipeline_wan, pipeline_skyreels_v2_diffusion_forcing):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@pytest.fixture(scope="module")
def pipe():
    return wan()


def made(stream, count):
    """Latents of chunks as the decoder gets them, and the frames."""
    found, decode = [], stream.decoder.decode

    def kept(latents):
        found.append(latents.clone())
        return decode(latents)

    stream.decoder.decode = kept
    frames = [chunk.frames for chunk in islice(stream, count)]
    return found, np.concatenate(frames)


def states(pipe, stream, text):
    pair = pipe.encode_prompt(text, stream.negative_prompt, True, max_sequence_length=stream.length)
    return dict(zip(("cond", "uncond"), pair, strict=True))


def guided(stream, found):
    return found["uncond"] + stream.guidance_scale * (found["cond"] - found["uncond"])


def test_a_cached_stream_is_the_block_causal_model_itself():
    """While nothing has left the window: clean blocks before, the noisy block after them, in one sequence."""
    pipe = skyreels(block=2)
    stream = Stream(pipe, "a red circle", sink=2, recent=4, trained=8, seed=4, **SIZE)
    assert stream.plan.context == "cache" and stream.plan.window.chunk == 2
    found, _ = made(stream, 4)
    text, generator, clean = states(pipe, stream, "a red circle"), torch.Generator().manual_seed(4), []
    for latents in found:
        noise = torch.randn(latents.shape, generator=generator)

        def answer(noisy, time, before=tuple(clean)):
            whole = torch.cat([*before, noisy], 2)
            levels = torch.zeros(1, whole.shape[2])
            levels[:, -2:] = time
            call = {"enable_diffusion_forcing": True, "return_dict": False}
            out = {name: pipe.transformer(whole, levels, state, **call)[0] for name, state in text.items()}
            return guided(stream, out)[:, :, -2:]

        with torch.no_grad():
            wanted = sampled(pipe, SIZE["steps"], noise, answer)
        torch.testing.assert_close(latents, wanted, atol=2e-4, rtol=1e-4)
        clean.append(latents)


@pytest.mark.parametrize("build", [wan, skyreels])
@pytest.mark.parametrize("keys", [{}, {"sink": 0, "recent": 3}, {"chunk": 3, "sink": 2, "recent": 1}])
def test_a_cached_stream_is_its_window_from_scratch(build, keys):
    """Also after frames have left it: against all keys that ever were, chosen and rotated anew in every call."""
    pipe, options = build(), CACHED | keys
    stream = Stream(pipe, "a red circle", seed=2, **options)
    found, _ = made(stream, 6)
    text, generator = states(pipe, stream, "a red circle"), torch.Generator().manual_seed(2)
    naive = Naive(stream.plan.window)
    for number, latents in enumerate(found):
        noise = torch.randn(latents.shape, generator=generator)
        naive.now.update(made=number * options["chunk"])

        def call(x, time, clean=False):
            out = {}
            for branch, state in text.items():
                naive.now.update(branch=branch, clean=clean)
                levels = torch.full((1, x.shape[2]), float(time))
                told = stream.plan.record.told(pipe.transformer, levels, 0, stream.fps)
                out[branch] = pipe.transformer(x, encoder_hidden_states=state, return_dict=False, **told)[0]
            return guided(stream, out)

        with torch.no_grad(), unrotated(pipe.transformer) as positions, patch(pipe.transformer, naive):
            naive.now["tables"] = lambda frames, x=noise, read=positions: read.tables(frames, x)
            wanted = sampled(pipe, SIZE["steps"], noise, call)
            torch.testing.assert_close(latents, wanted, atol=2e-4, rtol=1e-4)
            call(latents, 0.0, clean=True)


def test_rotation_left_out_and_made_by_the_stream_is_the_models_own(pipe):
    """A first chunk sees itself alone: the stock model."""
    stream = Stream(pipe, "a red circle", guidance_scale=1.0, seed=3, **CACHED)
    (latents,), _ = made(stream, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    text = states(pipe, stream, "a red circle")["cond"]
    with torch.no_grad():
        wanted = sampled(
            pipe, SIZE["steps"], noise, lambda x, t: pipe.transformer(x, t.expand(1), text, return_dict=False)[0]
        )
    torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)


def test_clean_frames_before_a_chunk_are_the_pipeline_of_given_frames(pipe):
    """Carried as pixels, a chunk is the clip that WanGivenFramesPipeline makes of that beginning."""
    stream = Stream(pipe, "a red circle", carried="pixels", guidance_scale=3.0, seed=7, **FRAMES)
    assert len(next(stream).frames) == 13
    beginning = (stream._before[0].permute(1, 2, 3, 0) / 2 + 0.5).numpy()
    noise = torch.randn(1, 4, 2, 4, 4, generator=stream.generator.clone_state())
    frames = next(stream).frames
    given = WanGivenFramesPipeline.from_pipe(pipe)
    whole = given(
        "a red circle", beginning=beginning, num_frames=13, height=32, width=32, num_inference_steps=3,
        guidance_scale=3.0, max_sequence_length=8, latents=torch.cat([torch.zeros(1, 4, 2, 4, 4), noise], 2),
    ).frames[0]  # fmt: skip
    assert frames.shape == (8, 32, 32, 3)
    assert np.abs(whole[5:] * 255 - frames).max() <= 0.51


@pytest.mark.parametrize("build", [wan, skyreels])
def test_clean_latents_before_a_chunk_are_one_sequence(build):
    pipe = build()
    stream = Stream(pipe, "a red circle", seed=5, **FRAMES)
    assert stream.plan.carried == "latents"
    found, frames = made(stream, 3)
    assert [x.shape[2] for x in found] == [4, 2, 2]
    text, generator = states(pipe, stream, "a red circle"), torch.Generator().manual_seed(5)
    before = None
    for latents in found:
        noise = torch.randn(latents.shape, generator=generator)

        def answer(x, time, before=before):
            whole = x if before is None else torch.cat([before, x], 2)
            levels = torch.zeros(1, whole.shape[2])
            levels[:, -x.shape[2] :] = time
            call = {"timestep": levels.repeat_interleave(4, 1)}
            if build is skyreels:
                call = {"timestep": levels, "enable_diffusion_forcing": True}
            out = {n: pipe.transformer(whole, encoder_hidden_states=s, return_dict=False, **call)[0]
                   for n, s in text.items()}  # fmt: skip
            return guided(stream, out)[:, :, -x.shape[2] :]

        with torch.no_grad():
            wanted = sampled(pipe, SIZE["steps"], noise, answer)
        torch.testing.assert_close(latents, wanted, atol=2e-4, rtol=1e-4)
        before = latents[:, :, -2:]
    whole = CODEC.decode(pipe.vae, torch.cat(found, 2))[0].permute(1, 2, 3, 0)
    assert np.abs((whole / 2 + 0.5).numpy() * 255 - frames).max() <= 0.51


def test_few_steps_that_renoise(pipe):
    """x0 = x - level v, and fresh noise of the next level, drawn from the stream's own generator."""
    stream = Stream(pipe, "a red circle", renoise=True, guidance_scale=1.0, seed=1, **CACHED)
    (latents,), _ = made(stream, 1)
    generator, text = torch.Generator().manual_seed(1), states(pipe, stream, "a red circle")["cond"]
    scheduler = stream.sampler.scheduler
    x, levels = torch.randn(latents.shape, generator=generator), [*scheduler.sigmas[:3].tolist(), 0.0]
    for step, time in enumerate(scheduler.timesteps):
        with torch.no_grad():
            clean = x - levels[step] * pipe.transformer(x, time.expand(1), text, return_dict=False)[0]
        noise = torch.randn(x.shape, generator=generator) if step < 2 else 0
        x = (1 - levels[step + 1]) * clean + levels[step + 1] * noise
    torch.testing.assert_close(latents, x, atol=1e-4, rtol=1e-4)


def test_fewer_key_blocks_are_attention_over_them(pipe):
    """A share reads the best blocks by the product of block means, and nothing else."""
    q, k, v = (torch.randn(1, n, 2, 8) for n in (130, 400, 400))
    out = block_sparse_attention(q, k, v, best_blocks(q, k, 0.5))[0]
    spans = [[(start, min(start + 64, n)) for start in range(0, n, 64)] for n in (130, 400)]
    means = [torch.stack([x[0, a:b].mean(0) for a, b in each]) for x, each in zip((q, k), spans, strict=True)]
    best = torch.einsum("mhd,nhd->hmn", *means).topk(3, -1).indices  # half of 7, rounded down
    for head in range(2):
        for block, (a, b) in enumerate(spans[0]):
            seen = torch.cat([torch.arange(*spans[1][column]) for column in best[head, block]])
            scores = q[0, a:b, head] @ k[0, seen, head].T * 8**-0.5
            torch.testing.assert_close(out[0, a:b, head], scores.softmax(-1) @ v[0, seen, head], atol=1e-5, rtol=1e-4)
    size = CACHED | {"height": 128, "width": 128, "steps": 1}
    frames = [next(islice(Stream(pipe, "a", keep=share, **size), 1, 2)).frames for share in (1, 0.3)]
    assert frames[0].shape == frames[1].shape and not np.array_equal(*frames)


@pytest.mark.parametrize("options", [CACHED, FRAMES, FRAMES | {"carried": "pixels"}])
class TestLife:
    def test_memory_stays(self, pipe, options):
        stream, sizes = Stream(pipe, "a red circle", **options), []
        for _ in islice(stream, 9):
            sizes.append(stream.bytes)
        assert len(set(sizes[2:])) == 1 and stream.frames == 4 * stream.made - 3

    def test_streams_share_a_pipeline(self, pipe, options):
        texts = ("a red circle", "a blue square")
        alone = [made(Stream(pipe, text, seed=n, **options), 4)[1] for n, text in enumerate(texts)]
        both = [Stream(pipe, text, seed=n, **options) for n, text in enumerate(texts)]
        found: list[list] = [[], []]
        for _ in range(4):
            for mine, stream in zip(found, both, strict=True):
                mine.append(next(stream).frames)
                pipe("a", height=32, width=32, num_frames=5, num_inference_steps=1)  # another call in between
        assert all(np.array_equal(np.concatenate(mine), wanted) for mine, wanted in zip(found, alone, strict=True))
        assert not np.array_equal(*alone)

    def test_reset_makes_the_same_again(self, pipe, options):
        stream = Stream(pipe, "a red circle", seed=9, **options)
        first = np.concatenate([c.frames for c in islice(stream, 3)])
        stream.reset()
        assert stream.frames == 0 and np.array_equal(first, np.concatenate([c.frames for c in islice(stream, 3)]))
        stream.reset("a blue square", seed=10)
        assert not np.array_equal(first, np.concatenate([c.frames for c in islice(stream, 3)]))
        stream.close()
        assert list(stream) == [] and stream.bytes == 0

    def test_another_prompt_acts_from_the_next_chunk_on(self, pipe, options):
        plain = [c.frames for c in islice(Stream(pipe, "a red circle", **options), 4)]
        stream, starts = Stream(pipe, "a red circle", **options), []
        ways = [Stream(pipe, {0: "a red circle", len(plain[0]) + 1: "a blue square"}, **options),
                Stream(pipe, iter(["a red circle"] * 2 + ["a blue square"] * 2), **options), stream]  # fmt: skip
        found = []
        for way in ways:
            chunks = []
            for chunk in islice(way, 4):
                chunks.append(chunk)
                if way is stream and chunk.index == 1:
                    way.prompt = "a blue square"
            found.append([c.frames for c in chunks])
            starts.append([c.prompt for c in chunks])
            assert next(way, None) is None if way is ways[1] else way.prompt == "a blue square"
        assert all(s == ["a red circle"] * 2 + ["a blue square"] * 2 for s in starts)
        for frames in found:
            assert all(np.array_equal(*pair) for pair in zip(frames, found[0], strict=True))
            assert all(np.array_equal(*pair) for pair in zip(frames[:2], plain[:2], strict=True))
            assert not np.array_equal(frames[2], plain[2])

    def test_the_model_is_left_as_it_was(self, pipe, options):
        call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
        before = pipe("a", generator=torch.Generator().manual_seed(0), **call).frames
        stream = Stream(pipe, "a red circle", **options)
        next(stream)
        kept = stream.frames, stream.made
        broken = stream.sampler.run
        stream.sampler.run = lambda *given: broken(*given) * float("nan")
        with pytest.raises(ArtifactError, match="NaN"):
            next(stream)
        assert (stream.frames, stream.made) == kept and not pipe.transformer.rope._forward_hooks
        assert np.array_equal(pipe("a", generator=torch.Generator().manual_seed(0), **call).frames, before)
        stream.sampler.run = broken
        wanted = [c.frames for c in islice(Stream(pipe, "a red circle", **options), 2)][1]
        assert np.array_equal(next(stream).frames, wanted)  # as if nothing had happened


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": "memory"}, "context of a stream: got 'memory'"),
        ({"context": None}, "do not tell whether they are causal"),
        ({"trained": 4}, "longer than the 4 that the model was trained on"),
        ({"chunk": 0}, "chunk of a stream's window: got 0"),
        ({"sink": 0, "recent": 0}, "forget everything"),
        ({"carried": "latents"}, "belongs to context='frames'"),
        ({"keep": 0}, "keep of a stream: got 0"),
        ({"context_noise": 1}, "context_noise: got 1"),
        ({"steps": 0}, "steps of a stream: got 0"),
        ({"height": 33}, "33"),
        ({"width": 0}, "width|0"),
        ({"trained": 5000}, None),
        (FRAMES | {"sink": 1}, "sink belongs to context='cache'"),
        (FRAMES | {"keep": 0.5}, "keep belongs to context='cache'"),
        (FRAMES | {"carried": "frames"}, "carried: got 'frames'"),
        (FRAMES | {"recent": 4, "chunk": None}, "chunk"),
    ],
)
def test_what_cannot_be_streamed(pipe, options, said):
    given = options if options.get("context") == "frames" else CACHED | options
    if said is None:  # positions beyond the model's table come only when they are reached
        assert next(Stream(pipe, "a", **given)).index == 0
        return
    with pytest.raises(UsageError, match=said):
        Stream(pipe, "a", **given)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [({5: "a"}, "begin at frame 0"), ({-1: "a", 0: "b"}, "whole number"), ({0: 3}, "prompt: got 3"), (7, "iterable"),
     ({}, "begin at frame 0")],
)  # fmt: skip
def test_prompts_that_are_none(pipe, prompt, said):
    with pytest.raises(UsageError, match=said):
        Stream(pipe, prompt, **CACHED)


def test_pipelines_and_patches_that_do_not_go_together(pipe):
    import tiny_pipelines

    import genkit

    with pytest.raises(UnsupportedError, match="cannot be streamed; pipelines that can: .*WanPipeline"):
        Stream(tiny_pipelines.wan_image("2.1"), "a", **CACHED)
    with pytest.raises(UnsupportedError, match="two transformers"):
        Stream(tiny_pipelines.wan(experts=True), "a", **CACHED)
    stream = Stream(pipe, "a", **CACHED)
    with genkit.patch(pipe, genkit.Radial(), roles="self"), pytest.raises(UsageError):
        next(stream)
    assert next(stream).index == 0
    with pytest.raises(UsageError, match="blocks of 2 frames"):
        Stream(skyreels(block=2), "a", **FRAMES)
    with pytest.raises(UsageError, match="chunk: got 3, allowed: 2"):
        Stream(skyreels(block=2), "a", **SIZE, chunk=3)


def test_a_frame_rate_is_told_to_models_that_know_it():
    pipe, found = skyreels(inject_sample_info=True), []
    pipe.transformer.register_forward_pre_hook(lambda m, a, k: found.append(k["fps"]), with_kwargs=True)
    for fps in (16, 24):
        next(Stream(pipe, "a", fps=fps, **FRAMES))
    assert found == [[0]] * 6 + [[1]] * 6


def test_defaults_follow_what_the_model_tells():
    """Without a word: from genkit.json, the configuration, or the class of the pipeline."""
    from genkit.models import Sidecar
    from genkit.streaming.plan import plan_stream

    def told(name, sidecar=None, index=None, **transformer):
        parts = {"model_index": index or {}, "transformer": transformer}
        plan = plan_stream(name, lambda part: parts.get(part, {}), sidecar or Sidecar())
        return plan.context, plan.carried, plan.window.sink, plan.window.recent, plan.window.chunk, plan.window.trained

    toy = Sidecar(defaults={"num_frames": 25}, given_frames=True)
    assert told("WanPipeline", toy) == ("frames", "pixels", 0, 1, 6, 7)
    assert told("WanPipeline", index={"expand_timesteps": True}) == ("frames", "pixels", 0, 1, 20, 21)
    skyreels = "SkyReelsV2DiffusionForcingPipeline"
    assert told(skyreels) == ("frames", "latents", 0, 5, 20, 25)
    assert told(skyreels, num_frame_per_block=5) == ("cache", "latents", 5, 5, 5, 25)
    plan = plan_stream("WanPipeline", lambda part: {}, Sidecar(), context="cache")
    assert plan.window.positions(30) == (0, 1, 2, 15, 16, 17, 18, 19, 20)  # as Hybrid Forcing has it
