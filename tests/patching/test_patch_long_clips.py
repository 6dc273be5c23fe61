"""Methods for long clips on tiny models of the real classes: positions are turned as the models turn them."""

from __future__ import annotations

import pytest
import torch

import genkit
from genkit.attention.frame_lists import turned
from genkit.errors import UnsupportedError
from genkit.patching.positions import TimeAngles


def longer(case, name, frames=7):
    draw = torch.Generator().manual_seed(2)
    given = case.args["hidden_states"]
    shape = [*given.shape[:2], frames, *given.shape[3:]]
    return case.run(hidden_states=torch.randn(shape, generator=draw))


def test_a_run_of_frames_at_new_positions_is_the_run_at_its_own(tiny_model, name="wan"):
    """Rotary attention knows distances alone, so this holds if the channels are turned as the model turns them. (In
    joint models text, which is not turned, sees queries at their new positions.)"""
    case = tiny_model(name)
    settings = {"trained": 2, "window": 1, "first": 0, "period": "none"}
    before, found = longer(case, name), []
    for positions in ("model", "reindexed"):
        with genkit.patch(case.model, genkit.AnchorWindow(**settings, positions=positions)) as patch:
            found.append(longer(case, name))
            assert patch.report().ran and not patch.report().declined
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found[0], before, atol=1e-4) and torch.equal(longer(case, name), before)
    with genkit.patch(case.model, genkit.AnchorWindow(trained=2, window=0, first=1, period=2, positions="reindexed")):
        new = longer(case, name)
    with genkit.patch(case.model, genkit.AnchorWindow(trained=2, window=0, first=1, period=2)):
        assert not torch.allclose(new, longer(case, name), atol=1e-4)


def test_joint_models_are_turned_as_their_own_function_does(tiny_model):
    from diffusers.models.embeddings import apply_rotary_emb

    model = tiny_model("hunyuan_video").model
    angles, rope = TimeAngles.of(model, "shape"), model.rope
    t, side = rope.patch_size_t, rope.patch_size
    tables = rope(torch.zeros(1, 4, 5 * t, 2 * side, 3 * side))
    x = torch.randn(1, 30, 2, tables[0].shape[-1])
    here = apply_rotary_emb(x, tables, sequence_dim=1)
    cos, sin = (table.repeat_interleave(6, 0)[:, None] for table in angles(5, x.device))
    still = apply_rotary_emb(x, tuple(table[:6].repeat(5, 1) for table in tables), sequence_dim=1)
    torch.testing.assert_close(turned(still, cos, sin), here, atol=1e-5, rtol=1e-5)
    case = tiny_model("hunyuan_video")
    with genkit.patch(model, genkit.AnchorWindow(trained=2, window=0, period=2, positions="reindexed")) as patch:
        assert longer(case, "hunyuan_video").isfinite().all() and patch.report().ran


def test_anchors_move_from_step_to_step(tiny_model):
    case = tiny_model("wan")
    settings = {"trained": 2, "window": 0, "first": 0, "period": 3}
    outs = []
    with genkit.patch(case.model, genkit.AnchorWindow(**settings), total_steps=6) as patch:
        for step in range(6):
            outs.append(longer_at(case, 900 - 100 * step))
        assert patch.report().ran
    for step in range(6):
        with genkit.patch(case.model, genkit.AnchorWindow(**settings, rotate=False, offset=step % 3)):
            torch.testing.assert_close(longer_at(case, 900 - 100 * step), outs[step])


def longer_at(case, level):
    draw = torch.Generator().manual_seed(2)
    shape = [*case.args["hidden_states"].shape[:2], 7, *case.args["hidden_states"].shape[3:]]
    return case.run(hidden_states=torch.randn(shape, generator=draw), timestep=torch.tensor([level, level]))


@pytest.mark.parametrize("positions", ["model", "reindexed"])
def test_heads_choose_in_a_model(tiny_model, positions):
    case = tiny_model("wan")
    before = longer(case, "wan")
    with genkit.patch(case.model, genkit.LongHeads(trained=4, near=0, positions=positions)) as patch:
        out, report = longer(case, "wan"), patch.report()
    assert report.ran and "heads of a layer together" in report.remarks[0] and report.work < 0.6
    assert out.isfinite().all() and not torch.allclose(out, before, atol=1e-4)


def test_models_that_tell_positions_otherwise_decline_new_ones(tiny_model):
    case = tiny_model("ltx")
    with genkit.patch(case.model, genkit.AnchorWindow(trained=1, window=1, positions="reindexed")) as patch:
        case.run()
        assert patch.report().ran == 0 and "positions=model" in next(iter(patch.report().declined))
    with pytest.raises(UnsupportedError):
        genkit.patch(tiny_model("unet").model, genkit.AnchorWindow(), roles="cross")
