"""Places of the latents that the model hides (padding in a batch) are read by no method, and nothing fails there."""

from __future__ import annotations

import pytest
import torch
import zoo
from test_matrix import CELLS, served_or_told, small

import genkit

FAMILY = "Allegro"
SHOWN = 4  # columns of pixels of the second sample that the mask shows, of 10


def _case() -> zoo.Case:
    case = zoo.build("allegro_masked")
    mask = torch.ones(2, 3, 8, 10)
    mask[1, :, :, SHOWN:] = 0
    return zoo.Case(case.model, case.args | {"attention_mask": mask}, case.grid)


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if cell.family == FAMILY and cell.fits], ids=lambda cell: str(cell.row)
)
def test_hidden_places_are_read_by_none(cell):
    case = _case()
    latents = case.args["hidden_states"]
    other = latents.clone()
    other[1, :, :, :, SHOWN:] += 3 * torch.randn(other[1, :, :, :, SHOWN:].shape)
    outs = []
    for given in (latents, other):
        with genkit.patch(case.model, cell.row.build(**small(cell.row)), backend="reference", total_steps=4) as handle:
            outs.append(case.run(hidden_states=given).view(2, 4, 3, 8, 10))
            report = handle.report()
    assert outs[0].isfinite().all() and all(map(served_or_told, report.sites))
    torch.testing.assert_close(outs[0][0], outs[1][0])
    torch.testing.assert_close(outs[0][1, ..., :SHOWN], outs[1][1, ..., :SHOWN])
    assert not torch.allclose(outs[0][1, ..., SHOWN:], outs[1][1, ..., SHOWN:])


def test_a_query_that_would_see_nothing_is_told():
    """A window that holds padding alone is no error in the middle of a run: the call stays the model's own."""
    case = _case()
    own = case.run()
    with genkit.patch(case.model, genkit.Neighborhood(size=3), backend="reference") as handle:
        assert torch.equal(case.run(), own)
        declined = handle.report().declined
    assert list(declined.values()) == [2] and "hides every key that some query would see" in next(iter(declined))
    with genkit.patch(case.model, genkit.Neighborhood(size="all"), backend="reference") as handle:
        torch.testing.assert_close(case.run(), own, atol=5e-6 * float(own.abs().max()), rtol=0)
        assert handle.report().ran == 2


def test_what_attends_as_the_model_does_serves_such_calls():
    case = _case()
    own = case.run()
    with genkit.patch(case.model, genkit.Broadcast(), backend="reference") as handle:
        torch.testing.assert_close(case.run(), own, atol=5e-6 * float(own.abs().max()), rtol=0)
        assert handle.report().ran == 2 and not handle.report().declined
