"""ViMAEdit's parts without a model: DDIM outside the region, ancestral inside; texts move an embedding."""

from __future__ import annotations

import pytest
import torch

from genkit.editing.vimaedit.embedding import edited_embedding
from genkit.editing.vimaedit.grounding import Grounding, normalised, region_of
from genkit.editing.vimaedit.sampling import calibrated, flow_step, table_step


def _one(value):
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def test_the_step_has_the_published_numbers():
    step = (_one(0.5), _one(0.8), _one(1.0), 0.25, 0.36)
    assert float(table_step(*step, 0.0)) == pytest.approx(0.5723760, abs=1e-7)
    assert float(table_step(*step, 1.0)) == pytest.approx(1.0617389, abs=1e-7)


def test_randomness_stays_inside_the_region():
    torch.manual_seed(0)
    noisy, clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.randn(1, 4, 6, 6)
    region = torch.zeros(1, 1, 6, 6)
    region[..., :3] = 1
    for step, here, there in ((table_step, 0.3, 0.5), (flow_step, 0.7, 0.5)):
        mixed = step(noisy, clean, noise, here, there, region)
        torch.testing.assert_close(mixed[..., 3:], step(noisy, clean, noise, here, there, 0.0)[..., 3:])
        torch.testing.assert_close(mixed[..., :3], step(noisy, clean, noise, here, there, 1.0)[..., :3])
        moved = step(noisy, clean, noise + 1, here, there, region)
        assert torch.equal(moved[..., 3:], mixed[..., 3:]) and not torch.equal(moved[..., :3], mixed[..., :3])


def test_a_step_without_variance_is_eulers_step_of_the_flow():
    noisy, clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.randn(1, 4, 6, 6)
    velocity = (noisy - clean) / 0.7
    torch.testing.assert_close(flow_step(noisy, clean, noise, 0.7, 0.5, 0.0), noisy + (0.5 - 0.7) * velocity)


def test_calibration_pins_the_source_row_to_the_picture():
    clean, given = torch.randn(2, 4, 6, 6), torch.randn(1, 4, 6, 6)
    found = calibrated(clean, clean[:1], given)
    torch.testing.assert_close(found[:1], given)
    torch.testing.assert_close(found[1] - clean[1], (given - clean[:1])[0])


def test_texts_move_the_embedding_by_its_own_length():
    image = torch.tensor([[3.0, 4.0, 0.0]])
    source, target = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 2.0]])
    torch.testing.assert_close(edited_embedding(image, source, target), torch.tensor([[-2.0, 4.0, 5.0]]))
    torch.testing.assert_close(edited_embedding(image, source, source * 7), image)


def test_a_region_is_where_any_row_is_above_its_own_threshold():
    maps = torch.tensor([[[0.0, 0.2], [0.4, 1.0]], [[5.0, 5.0], [5.0, 9.0]]])
    found = region_of(maps, (4, 4), 0.3)
    wanted = torch.zeros(4, 4)
    wanted[2:, :] = 1
    assert found.shape == (1, 1, 4, 4) and torch.equal(found[0, 0], wanted)


def test_a_constant_map_is_no_region():
    assert torch.equal(normalised(torch.full((1, 3, 3), 0.4)), torch.zeros(1, 3, 3))


def test_masks_wait_for_their_step_and_sum_the_maps():
    grounding = Grounding((2, 2), start=0.2)
    assert grounding.region(9, 10, 0.5) is None
    grounding.add(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
    grounding.add(torch.tensor([[[0.0, 3.0], [0.0, 0.0]]]))
    assert grounding.region(1, 10, 0.5) is None
    assert torch.equal(grounding.region(2, 10, 0.5)[0, 0], torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
