"""Motion by boxes on tiny models of the real classes: zero at the start, told, trained, saved, shared, removed."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.attention.motion_boxes import BoxTrack
from genkit.attention.reference.store import References
from genkit.attention.registry import trained
from genkit.errors import ArtifactError, UsageError

SMALL = genkit.MotionBoxes(width=4, rank=3)
HERE, THERE = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.4, 0.4, 1.0, 1.0]])


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_on_every_family(tiny_model, name):
    """Untrained, and without boxes, the model is itself bit for bit; trained, it depends on where the box is."""
    case = tiny_model(name)
    reference = case.run()
    state = set(case.model.state_dict())
    with genkit.patch(case.model, SMALL) as patch:
        track = BoxTrack.of(patch.cache)
        track.set(HERE)
        assert torch.equal(case.run(), reference)
        tiny.open_projections(patch.weights)
        track.set(None)
        assert torch.equal(case.run(), reference)
        assert "no boxes were set" in next(iter(patch.report().declined))
        track.set(HERE)
        here = case.run()
        track.set(THERE)
        there = case.run()
        assert torch.isfinite(here).all() and not torch.allclose(here, reference, atol=1e-5)
        assert not torch.allclose(here, there, atol=1e-5)
    assert torch.equal(case.run(), reference) and set(case.model.state_dict()) == state


def test_reported_and_saved(tiny_model, tmp_path):
    case = tiny_model("wan")
    with genkit.patch(case.model, SMALL) as patch:
        tiny.open_projections(patch.weights)
        BoxTrack.of(patch.cache).set(HERE)
        expected = case.run()
        report = patch.report()
        assert report.ran and not report.declined
        assert "motion_boxes" in str(patch.describe())
        file = patch.weights.save(tmp_path / "boxes.safetensors")
        half = patch.weights.save(tmp_path / "half.safetensors", torch.float16)
        assert half.stat().st_size < file.stat().st_size
    with genkit.patch(case.model, trained("motion_boxes", half)) as patch:
        BoxTrack.of(patch.cache).set(HERE)
        torch.testing.assert_close(case.run(), expected, rtol=1e-2, atol=1e-2)
    method = trained("motion_boxes", file)
    assert (method.width, method.rank) == (4, 3)
    with genkit.patch(case.model, method) as patch:
        BoxTrack.of(patch.cache).set(HERE)
        assert torch.equal(case.run(), expected)
    with pytest.raises(ArtifactError, match="does not fit this patch"):
        genkit.patch(case.model, method, schedule=genkit.Schedule(layers="0"))
    with pytest.raises(ArtifactError, match="does not fit this patch"):
        genkit.patch(tiny_model("flux").model, method)


def test_gradients_reach_every_weight_once_the_projection_is_open(tiny_model):
    """At the start only the zero projections learn; afterwards the encoder does, too. Graphs serve one step each."""
    case = tiny_model("wan")
    with genkit.patch(case.model, SMALL) as patch:
        BoxTrack.of(patch.cache).set(HERE)
        for opened in (False, True):
            for _ in range(2):  # the boxes are encoded anew in every call
                patch.weights.zero_grad()
                case.model(**case.args)[0].square().mean().backward()
            for name, parameter in patch.weights.named_weights().items():
                learns = parameter.grad is not None and bool(parameter.grad.any())
                assert learns == (opened or name.endswith(".out")), name
            tiny.open_projections(patch.weights)


def test_shares_layers_with_a_sparse_method_and_references(tiny_model):
    """The term is added to what computes the attention, whatever that is."""
    case = tiny_model("wan")
    parts = [genkit.Radial(block_size=16), genkit.Reference(form="residual", rank=2), SMALL]
    with genkit.patch(case.model, parts[:1]):
        radial = case.run()
    with genkit.patch(case.model, parts) as patch:
        BoxTrack.of(patch.cache).set(HERE)
        with torch.no_grad():
            References.of(patch.cache).record(patch, case.model, **case.args)
        assert torch.equal(case.run(), radial)
        tiny.open_projections(patch.weights)
        assert not torch.allclose(case.run(), radial, atol=1e-5)


def test_terms_of_one_method_are_added_once(tiny_model):
    case = tiny_model("wan")
    with genkit.patch(case.model, SMALL) as patch:
        with pytest.raises(UsageError, match="already has motion_boxes"):
            genkit.patch(case.model, genkit.MotionBoxes(width=5))
        assert BoxTrack.of(patch.cache).boxes is None
    with pytest.raises(UsageError, match="already has motion_boxes"):
        genkit.patch(case.model, [SMALL, SMALL])


def test_strength(tiny_model):
    case = tiny_model("wan")
    reference = case.run()
    found = []
    for strength in (0.0, 0.5, 1.0):
        with genkit.patch(case.model, genkit.MotionBoxes(strength=strength, width=4, rank=3)) as patch:
            tiny.open_projections(patch.weights)
            BoxTrack.of(patch.cache).set(HERE)
            found.append((case.run() - reference).norm())
    assert found[0] == 0 < found[1] < found[2]
