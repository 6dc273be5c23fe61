"""A stream of a pipeline that goes on by itself is one long call of it, and its prompt can change."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from streams import wan
from tiny_helios import build_tiny_helios

import genkit
from genkit.errors import UnsupportedError, UsageError
from genkit.streaming import HistoryStream, Stream

SIZE = {"height": 64, "width": 64, "max_sequence_length": 8, "guidance_scale": 1.0}
GUIDED = {**SIZE, "guidance_scale": 3.0}


@pytest.fixture(autouse=True)
def _no_ftfy(monkeypatch):
    from diffusers.pipelines.helios import pipeline_helios, pipeline_helios_pyramid

    for module in (pipeline_helios, pipeline_helios_pyramid):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def frames_of(stream, count):
    return np.concatenate([chunk.frames for chunk in islice(stream, count)])


@pytest.mark.parametrize("pyramid", [False, True])
def test_the_frames_are_those_of_one_long_call(pyramid):
    pipe = build_tiny_helios(pyramid)
    steps = {"pyramid_num_inference_steps_list": [1, 1, 2]} if pyramid else {"num_inference_steps": 2}
    long = pipe(
        "a red circle", num_frames=99, generator=torch.Generator().manual_seed(5), output_type="pt",
        add_noise_to_image_latents=False, **GUIDED, **steps,
    ).frames[0]  # fmt: skip
    wanted = (long.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    own = {"call": steps} if pyramid else {"steps": 2}
    made = frames_of(HistoryStream(pipe, "a red circle", seed=5, **GUIDED, **own), 3)
    assert made.shape == (99, 64, 64, 3) and len(wanted) > 66
    assert np.array_equal(made[: len(wanted)], wanted)


def test_chunks_tell_where_they_begin_and_memory_stops_growing():
    stream, steps = HistoryStream(build_tiny_helios(), "a red circle", steps=1, **SIZE), []
    stream.stepped = lambda done, of: steps.append((done, of))
    chunks = list(islice(stream, 4))
    assert [chunk.start for chunk in chunks] == [0, 33, 66, 99] and steps == [(1, 1)] * 4
    held = stream.bytes
    next(stream)
    assert held == stream.bytes > 0  # 20 latent frames, however long the video is
    stream.reset()
    assert stream.bytes == 0 and np.array_equal(next(stream).frames, chunks[0].frames)
    stream.close()
    assert list(stream) == []


def test_another_prompt_acts_from_the_next_chunk_on():
    pipe = build_tiny_helios()
    plain = [chunk.frames for chunk in islice(HistoryStream(pipe, "a red circle", steps=1, **SIZE), 2)]
    stream = HistoryStream(pipe, {0: "a red circle", 20: "a blue square"}, steps=1, **SIZE)
    first, second = next(stream), next(stream)
    assert np.array_equal(first.frames, plain[0]) and second.prompt == stream.prompt == "a blue square"
    assert not np.array_equal(second.frames, plain[1])


def test_a_chunk_that_fails_is_made_again_as_if_nothing_had_been():
    pipe = build_tiny_helios()
    wanted = frames_of(HistoryStream(pipe, "a red circle", steps=1, **SIZE), 2)
    stream = HistoryStream(pipe, "a red circle", steps=1, **SIZE)
    first = next(stream).frames

    def stop(done, of):
        raise KeyboardInterrupt

    stream.stepped = stop
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    stream.stepped = None
    assert np.array_equal(np.concatenate([first, next(stream).frames]), wanted)


def test_methods_are_patched_around_it():
    pipe = build_tiny_helios()
    plain = frames_of(HistoryStream(pipe, "a red circle", steps=1, **SIZE), 2)
    with genkit.patch(pipe, genkit.Neighborhood(size=("all", "all", "all"))):
        full = frames_of(HistoryStream(pipe, "a red circle", steps=1, **SIZE), 2)
    with genkit.patch(pipe, genkit.Neighborhood(size=(1, 3, 3))) as handle:
        sparse = frames_of(HistoryStream(pipe, "a red circle", steps=1, **SIZE), 2)
        assert handle.report().ran and not handle.report().declined
    assert np.abs(plain.astype(int) - full).max() <= 1 and not np.array_equal(plain, sparse)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, "steps of a stream: got 0"),
        ({"call": {"num_frames": 5}}, "num_frames is given by the stream itself"),
        ({"call": {"num_inference_steps": 5}}, "num_inference_steps is given by the stream itself"),
    ],
)
def test_wrong_settings_are_refused(more, words):
    with pytest.raises(UsageError, match=words):
        HistoryStream(build_tiny_helios(), "a red circle", **SIZE, **more)


def test_each_kind_of_stream_names_the_other():
    with pytest.raises(UnsupportedError, match="HistoryStream"):
        Stream(build_tiny_helios(), "a red circle")
    with pytest.raises(UnsupportedError, match="take genkit.streaming.Stream"):
        HistoryStream(wan(), "a red circle")
    with pytest.raises(UsageError, match="takes no number of steps"):
        HistoryStream(build_tiny_helios(True), "a red circle", steps=3)
