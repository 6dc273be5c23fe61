"""How much of the references each grid token reads: boxes, parts of the batch, and both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from genkit.attention.reference.store import References
from genkit.errors import UsageError

SITE = SimpleNamespace(name="blocks.0", layout=SimpleNamespace(grid=(1, 1, 4)))
LIKE = torch.zeros(1)


def references(boxes=None, parts=()):
    found = References()
    found._boxes, found._parts = boxes, parts
    return found


def test_without_boxes_and_parts_all_read_fully():
    assert references().share(SITE, 0.0, 4, LIKE) is None


def test_parts_of_a_batch_have_equal_rows():
    found = references(parts=(0.0, 1.0)).share(SITE, 0.0, 4, LIKE)
    assert found.tolist() == [[0.0], [0.0], [1.0], [1.0]]
    with pytest.raises(UsageError, match="3 rows has no 2 equal parts"):
        references(parts=(0.0, 1.0)).share(SITE, 0.0, 3, LIKE)


def test_boxes_weigh_tokens_and_parts_weigh_rows():
    boxes = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    both = references(boxes).share(SITE, 0.25, 2, LIKE)
    assert both.shape == (2, 4) and torch.equal(both[0], both[1])
    assert both[0, 0] > both[0, 3] and both[0, 3] == 0.25
    weighed = references(boxes, (0.0, 0.5)).share(SITE, 0.25, 2, LIKE)
    assert torch.equal(weighed, both * torch.tensor([[0.0], [0.5]]))
    # Kept for the next layer of the same grid, but not for another share outside.
    kept = references(boxes)
    assert kept.share(SITE, 0.25, 1, LIKE)[0, 3] == 0.25 and kept.share(SITE, 0.5, 1, LIKE)[0, 3] == 0.5
