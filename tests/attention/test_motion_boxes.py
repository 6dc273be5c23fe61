"""Motion by boxes: what is told of a track, in closed form, the encoder, and the layer's term."""

from __future__ import annotations

import math

import pytest
import torch

from genkit.attention.cache import PatchCache
from genkit.attention.motion_boxes import BoxTrack, MotionBoxes, interpolated
from genkit.attention.motion_boxes.control import CELLS, CHANNELS, SLOTS, check_boxes, control, slots
from genkit.attention.motion_boxes.track import Encoder
from genkit.attention.reference.masks import box_mask, grid_mask
from genkit.errors import UsageError

F64 = {"device": torch.device("cpu"), "dtype": torch.float64}
BAD = (math.nan, math.inf, -0.1, 1.1)


def moving(frames, rows=1):
    draw = torch.Generator().manual_seed(3)
    corner = torch.rand(rows, frames, 2, generator=draw) * 0.5
    return check_boxes(torch.cat([corner, corner + 0.1 + 0.4 * torch.rand(rows, frames, 2, generator=draw)], -1))


@pytest.mark.parametrize("frames", [17, 5, 10, 1])
def test_coverage_averages_to_the_mask_of_reference_attention(frames):
    """Mean over slots and cells of a token = area average of the box mask on the token grid."""
    grid, boxes = (5, 4, 6), moving(frames)
    cover = control(boxes, grid)[..., : SLOTS * CELLS**2].mean(-1)
    fine = box_mask(boxes[0].tolist(), 32, 48)
    if frames == 10:  # two frames a latent frame: two slots each
        assert torch.allclose(cover.flatten(1), grid_mask(fine, grid), atol=1e-5)
    elif frames == 1:
        assert torch.allclose(cover.flatten(1), grid_mask(fine, grid), atol=1e-5)
        assert (cover == cover[:, :1]).all()
    else:
        assert torch.allclose(cover.flatten(1), grid_mask(fine, grid), atol=1e-5)


def test_the_first_latent_frame_is_the_first_picture_frame_alone():
    boxes = moving(9)
    held = slots(boxes, 3)
    assert torch.equal(held[:, 0], boxes[:, :1].expand(-1, SLOTS, -1))
    assert torch.equal(held[:, 1], boxes[:, 1:5]) and torch.equal(held[:, 2], boxes[:, 5:])


@pytest.mark.parametrize("given", [2, 3, 7, 16])
def test_frames_that_do_not_fit(given):
    with pytest.raises(UsageError, match=f"frames with boxes: got {given}, allowed: 1, a multiple of 5, or 1 .*of 4"):
        slots(moving(given), 5)


def test_distances_and_sides_of_a_token():
    """A box of 2 x 4 tokens in a grid of 4 x 8, its middle at (2, 4): by hand."""
    told = control(check_boxes(torch.tensor([[1 / 8, 1 / 4, 3 / 8, 3 / 4]])), (1, 4, 8))[0, 0]
    assert told.shape == (4, 8, CHANNELS)
    begin = SLOTS * CELLS**2
    across, wide, down, high = (told[..., begin + SLOTS * i : begin + SLOTS * (i + 1)] for i in range(4))
    for row, column in ((0, 0), (3, 7), (1, 2)):
        assert across[row, column, 0] == pytest.approx(math.tanh((column + 0.5 - 2) / 1.5), abs=1e-6)
        assert down[row, column, 0] == pytest.approx(math.tanh((row + 0.5 - 2) / 1.5), abs=1e-6)
    assert (wide == 0.25).all() and (high == 0.25).all()  # half sides of one token, over four
    assert told[..., :begin].sum() == pytest.approx(4 * SLOTS * CELLS**2)  # 2 x 2 tokens are covered


def test_told_the_same_by_every_resolution_of_boxes_at_rest():
    boxes = moving(1)
    assert torch.equal(control(boxes, (3, 4, 4)), control(boxes.expand(-1, 9, -1), (3, 4, 4)))


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("value", BAD)
def test_boxes_that_are_none(side, value):
    row = [0.2, 0.2, 0.8, 0.8]
    row[side] = value
    with pytest.raises(UsageError, match=r"box of frame 1: got .*, allowed: \(left, top, right, bottom\)"):
        BoxTrack().set(torch.tensor([[0.2, 0.2, 0.8, 0.8], row]))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (0, 4), (1, 1, 1, 4)])
def test_shapes_that_are_none(shape):
    with pytest.raises(UsageError, match=r"boxes: got .*allowed: \(frames, 4\) or \(batch, frames, 4\)"):
        BoxTrack().set(torch.zeros(shape))


def test_boxes_between_key_frames():
    keys = {2: (0.0, 0.0, 0.2, 0.2), 6: (0.4, 0.2, 0.8, 0.6)}
    found = interpolated(keys, 9)
    assert torch.allclose(found[4], torch.tensor([0.2, 0.1, 0.5, 0.4]).double())
    assert torch.equal(found[:3], found[2].expand(3, 4)) and torch.equal(found[6:], found[8].expand(3, 4))
    assert torch.equal(interpolated(dict(reversed(keys.items())), 9), found)
    assert interpolated({0: (0, 0, 1, 1)}, 1).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({0: (0, 0, 1, 1)}, "boxes at two frames or more, got 1"),
        ({}, "boxes at two frames or more, got 0"),
        ({0: (0, 0, 1, 1), 9: (0, 0, 1, 1)}, "key frame: got 9, allowed: a whole number from 0 to 8"),
        ({-1: (0, 0, 1, 1), 3: (0, 0, 1, 1)}, "key frame: got -1"),
        ({0.5: (0, 0, 1, 1), 3: (0, 0, 1, 1)}, "key frame: got 0.5"),
        ({0: (0, 0, 1, 1), 3: (0.5, 0, 0.5, 1)}, "box of frame 1"),
    ],
)
def test_tracks_that_are_none(keys, said):
    with pytest.raises(UsageError, match=said):
        interpolated(keys, 9)


def test_encoder_in_float64():
    """Gradients of every weight against finite differences; frames mix along time, places along the picture."""
    encoder = Encoder(3, 0, **F64)
    told = control(moving(9, 2), (3, 4, 5)).double()
    names, tables = zip(*encoder.named_parameters(), strict=True)

    def call(*tables):
        return torch.func.functional_call(encoder, dict(zip(names, tables, strict=True)), (told[:1, :, :2, :2],))

    assert torch.autograd.gradcheck(call, tables)
    out = encoder(told)
    assert out.shape == (2, 3, 4, 5, 3)
    changed = told.clone()
    changed[:, 2, 3, 4] += 1
    where = (encoder(changed) != out).any(-1)[0]
    assert where[2, 2:, 3:].all() and not where[:, 0].any() and where[0, 3, 4]


def test_encoded_once_and_anew_when_boxes_change():
    track = BoxTrack.of(PatchCache())
    encoder, like = Encoder(3, 0, **F64), torch.zeros(1).double()
    assert track.encoded(encoder, (2, 4, 4), 2, like) is None
    with torch.no_grad():
        track.set(moving(5)[0])
        first = track.encoded(encoder, (2, 4, 4), 2, like)
        assert first.shape == (2, 32, 3) and torch.equal(first[0], first[1])
        again = track.encoded(encoder, (2, 4, 4), 4, like)
        assert again.data_ptr() == first.data_ptr()
        track.set(moving(5, 2))
        rows = track.encoded(encoder, (2, 4, 4), 4, like)
        assert torch.equal(rows[:2], rows[2:]) and not torch.equal(rows[0], rows[1])
        with pytest.raises(UsageError, match="boxes of 2 rows cannot serve a batch of 3"):
            track.encoded(encoder, (2, 4, 4), 3, like)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": math.nan}, "strength"),
        ({"width": 0}, "width"),
        ({"rank": 0}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_are_none(settings, said):
    with pytest.raises(UsageError, match=f"motion_boxes.{said}"):
        MotionBoxes(**settings)
