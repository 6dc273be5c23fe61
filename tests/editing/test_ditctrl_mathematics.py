"""The numbers of DiTCtrl: plans, weights, blending, and one masked attention in place of two."""

from types import SimpleNamespace

import pytest
import torch

from genkit.control import Rows, Where
from genkit.control.method import ControlMethod, ControlState, taken_mask
from genkit.editing.ditctrl.plan import Blend, Plan, Tile, triangle
from genkit.editing.ditctrl.sharing import Masks, Sharing, foreground, map_name, rules_of
from genkit.editing.ditctrl.tiles import mixed
from genkit.editing.shared.model import Conditions
from genkit.errors import UsageError
from genkit.families.training.objectives import Flow, Table
from genkit.layout import TokenLayout

PLANS = (  # prompts, transitions, overlap -> tiles, latents, frames, tile evaluations of a step
    ((2, 1, 6), (3, 27, 105, 4)),
    ((2, 2, 9), (4, 25, 97, 6)),
    ((3, 1, 6), (5, 41, 161, 8)),
    ((3, 2, 9), (7, 37, 145, 12)),
    ((5, 2, 9), (13, 61, 241, 24)),
)


@pytest.mark.parametrize("asked, numbers", PLANS)
def test_published_plans(asked, numbers):
    shots, transitions, overlap = asked
    plan = Plan.published(shots, 13, overlap, transitions)
    assert (len(plan.tiles), plan.total, plan.frames, plan.evaluations()) == numbers
    assert plan.evaluations(pairs=False) == numbers[0]
    steps = [tile.shares for tile in plan.tiles]
    assert steps[0][0] == steps[-1][-1] == 1
    for number, tile in enumerate(plan.tiles):
        shot, block = divmod(number, transitions + 1)
        share = block / (transitions + 1)
        assert tile.shares[shot] == pytest.approx(1 - share)
        assert sum(tile.shares) == pytest.approx(1)
        assert tile.nearest == (shot if share < 0.5 else shot + 1)


@pytest.mark.parametrize("asked, numbers", PLANS)
def test_lengths_of_a_published_plan_give_that_plan(asked, numbers):
    shots, transitions, overlap = asked
    plan = Plan.published(shots, 13, overlap, transitions)
    again = Plan.timed([end - first for first, end in plan.spans], 13, overlap, transitions)
    assert [tile.start for tile in again.tiles] == [tile.start for tile in plan.tiles]
    assert again.frames == plan.frames
    for one, other in zip(plan.tiles, again.tiles, strict=True):
        # a border between two latent frames falls on a whole frame
        assert one.shares == pytest.approx(other.shares, abs=0.05)


def test_a_longer_middle_has_more_tiles():
    plan = Plan.published(3, 13, 6, longer_middle=2)
    assert len(plan.tiles) == 3 + 2 + 2
    assert [tile.nearest for tile in plan.tiles] == [0, 1, 1, 1, 1, 2, 2]
    assert len(Plan.published(2, 13, 6, longer_middle=2).tiles) == 3


@pytest.mark.parametrize("frames", [(25, 24, 24), (33, 40), (25, 20, 60, 28), (21, 20, 20, 20, 20)])
def test_timed_plans_cover_the_clip_and_show_every_shot(frames):
    plan = Plan.timed(frames, 7, 3)
    assert plan.frames == sum(frames)
    assert [end - first for first, end in plan.spans] == list(frames)
    covered = torch.zeros(plan.total)
    for tile in plan.tiles:
        covered[plan.window(tile)] += 1
    assert covered.min() >= 1
    steps = [b.start - a.start for a, b in zip(plan.tiles, plan.tiles[1:], strict=False)]
    assert max(steps) <= 4
    assert all(max(tile.shares[shot] for tile in plan.tiles) >= 0.5 for shot in range(len(frames)))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Plan.published(1, 7, 3), "one prompt alone"),
        (lambda: Plan.published(0, 7, 3), "number of shots: got 0"),
        (lambda: Plan.published(101, 7, 3), "number of shots: got 101"),
        (lambda: Plan.published(2, 7, 7), "overlap: got 7, allowed: 0 to 6"),
        (lambda: Plan.published(2, 7, -1), "overlap"),
        (lambda: Plan.published(2, 0, 0), "tile length"),
        (lambda: Plan.published(2, 7, 3, 11), "transitions"),
        (lambda: Plan.published(2, 7, 3, longer_middle=-1), "longer_middle"),
        (lambda: Plan.timed((25, 25), 7, 3), "give shot 2 24 or 28 frames in place of 25"),
        (lambda: Plan.timed((5, 4), 7, 3), "9 frames together; the model makes 25 at once"),
        (lambda: Plan.timed((33, 4, 32), 7, 3), "shot 2 has 4 frames, too few"),
        (lambda: Plan.timed((33, 0, 32), 7, 3), "frames of shot 2: got 0"),
        (lambda: Plan.timed((33, True), 7, 3), "frames of shot 2"),
        (lambda: Plan.timed((33, 10**9), 7, 3), "up to 10000"),
    ],
)
def test_plans_that_do_not_fit_say_why(call, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_shot_that_is_told_to_be_longer_then_fits():
    with pytest.raises(UsageError) as error:
        Plan.timed((33, 4, 32), 7, 3)
    least = int(str(error.value).partition("give it ")[2].split()[0])
    assert Plan.timed((33, least, 32), 7, 3).frames == 65 + least


def test_triangular_weights():
    told = [0.0769, 0.2308, 0.3846, 0.5385, 0.6923, 0.8462]
    assert triangle(13).tolist() == pytest.approx([*told, 1, *reversed(told)], abs=5e-5)
    assert float(triangle(13).sum()) == pytest.approx(6.538462, abs=5e-7)
    assert float(triangle(13).min()) == pytest.approx(0.076923, abs=5e-7)


def _share_of_tile_one(groups):
    plan = Plan.published(2, 13, 6)
    blend = Blend(plan, torch.zeros(1, 1, plan.total, 1, 1, dtype=torch.float64))
    for group in groups:
        for number in group:
            blend.add(plan.tiles[number], torch.full((1, 1, 13, 1, 1), float(number == 1), dtype=torch.float64))
    assert float(blend.mass.min()) > 0.0769
    return blend.result()[0, 0, 7:13, 0, 0].tolist()


def test_shares_in_an_overlap():
    pairs = _share_of_tile_one([(0, 1), (1, 2)])
    assert pairs == pytest.approx([0.1538, 0.4, 0.5882, 0.7368, 0.8571, 0.9565], abs=5e-5)
    once = _share_of_tile_one([(0, 1, 2)])
    assert once == pytest.approx([0.0833, 0.25, 0.4167, 0.5833, 0.75, 0.9167], abs=5e-5)


def test_constant_answers_blend_to_the_constant():
    plan = Plan.published(3, 5, 2)
    blend = Blend(plan, torch.zeros(1, 2, plan.total, 3, 3))
    for tile in plan.tiles:
        blend.add(tile, torch.full((1, 2, 5, 3, 3), 0.7))
    torch.testing.assert_close(blend.result(), torch.full((1, 2, plan.total, 3, 3), 0.7))


@pytest.mark.parametrize("objective", [Flow(), Table(torch.linspace(0.99, 0.01, 100).double(), "v_prediction")])
def test_blending_clean_latents_is_blending_answers(objective):
    plan, draw = Plan.published(2, 5, 2), torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 2, plan.total, 2, 2, generator=draw, dtype=torch.float64)
    level = torch.tensor([0.415], dtype=torch.float64)
    answers, cleaned = Blend(plan, noisy), Blend(plan, noisy)
    for tile in plan.tiles:
        answer = torch.randn(1, 2, 5, 2, 2, generator=draw, dtype=torch.float64)
        answers.add(tile, answer)
        cleaned.add(tile, objective.clean(noisy[:, :, plan.window(tile)], answer, level))
    assert float((objective.clean(noisy, answers.result(), level) - cleaned.result()).abs().max()) < 1e-14


def test_texts_are_mixed_in_shares_and_tokens_of_either_count():
    states = torch.randn(2, 4, 3)
    shots = Conditions({"states": states, "mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])})
    made = mixed(shots, (0.25, 0.75))
    torch.testing.assert_close(made.tensors["states"][0], 0.25 * states[0] + 0.75 * states[1])
    assert made.tensors["mask"].tolist() == [[1, 1, 1, 0]]
    assert torch.equal(mixed(shots, (0.0, 1.0)).tensors["states"][0], states[1])


def test_layers_of_published_models():
    def first(layers):
        return Sharing().where(layers).layers[0].start

    assert {layers: first(layers) for layers in (30, 42, 40, 60, 6, 2)} == {30: 25, 42: 35, 40: 34, 60: 50, 6: 5, 2: 1}
    assert Sharing(layers="3:5").where(30).layers == Where(layers="3:5").layers


def test_published_steps():
    where = Sharing().where(30)
    assert [step for step in range(50) if where.at_step(step, 50)] == list(range(2, 25))


# Masks: (3 frames, 2 x 4) tokens and 5 of text, which comes first.
LAYOUT = TokenLayout.of_grid(3, 2, 4, text=5, text_first=True)
ROWS = Rows.of("source", "target", guided=False)


def _attend(mask_source, mask_target, key_mask=None, guided=False):
    """Attention of the target under the rules of the form "mask", with these foregrounds, and q, k, v."""
    from genkit.attention.cache import PatchCache
    from genkit.attention.site import Site

    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, LAYOUT.length, 2, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    site = Site("blocks.0.attn", 0, 1, "joint", 2, LAYOUT, LAYOUT, step=0, steps=2, key_mask=key_mask)
    masks = Masks(0.5, {"source": (0,), "target": (0,)}, (0,))
    found = {map_name("source"): mask_source, map_name("target"): mask_target}
    maps = SimpleNamespace(names=tuple(found), latest=lambda name: found[name].double()[None, ..., None])
    masks.control = SimpleNamespace(maps=maps)
    sharing = Sharing("mask", layers="0:", steps=(0.0, 1.0))
    rules = [rule for rule in rules_of([("source", "target")], sharing, 1, masks) if not str(rule).startswith("read")]
    method = ControlMethod(tuple(rules), ControlState(ROWS, 0, 2))
    out = method.attend(q, k, v, site, PatchCache())
    return out, (q, k, v)


def _plain(q, k, v, mask=None):
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1)


def test_two_masked_attentions_and_a_fusion_are_one_attention():
    draw = torch.Generator().manual_seed(2)
    source, target = (torch.rand(3, 2, 4, generator=draw) > 0.5 for _ in range(2))
    source[:, 0, 0] = target[:, 0, 0] = True
    source[:, 1, 3] = target[:, 1, 3] = False
    out, (q, k, v) = _attend(source, target)
    grid, text = slice(5, LAYOUT.length), torch.ones(5, dtype=torch.bool)
    front = _plain(q[1], k[0], v[0], torch.cat([text, source.flatten()])[None])
    back = _plain(q[1], k[0], v[0], torch.cat([text, ~source.flatten()])[None])
    fused = torch.where(target.flatten()[:, None, None], front[grid], back[grid])
    torch.testing.assert_close(out[1, grid], fused, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[1, :5], _plain(q[1], k[0], v[0])[:5], rtol=0, atol=1e-12)
    torch.testing.assert_close(out[0], _plain(q[0], k[0], v[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("source, target", [(0, 0), (0, 1), (1, 0)])
def test_a_frame_without_foreground_shares_plainly(source, target):
    masks = [torch.full((3, 2, 4), bool(value)) for value in (source, target)]
    for mask in masks:  # constant maps have no foreground; make the ones real ones in part of a frame
        if mask.any():
            mask[:, 0, 0] = False
    out, (q, k, v) = _attend(*masks)
    torch.testing.assert_close(out[1], _plain(q[1], k[0], v[0]), rtol=0, atol=1e-12)


def test_keys_that_are_taken_bring_their_padding():
    mask = torch.ones(2, LAYOUT.length, dtype=torch.bool)
    mask[0, 3:5], mask[1, 1:5] = False, False
    empty = torch.zeros(3, 2, 4)
    out, (q, k, v) = _attend(empty, empty, mask)
    torch.testing.assert_close(out[1], _plain(q[1], k[0], v[0], mask[0][None]), rtol=0, atol=1e-12)
    rules = rules_of([("source", "target")], Sharing(layers="0:"), 1, None)
    site = SimpleNamespace(key_mask=mask)
    assert torch.equal(taken_mask(rules, ROWS, site), mask[[0, 0]])


def test_foreground_is_normalised_frame_by_frame():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.01], [0.02, 0.04]], [[3.0, 3.0], [3.0, 3.0]]])
    assert foreground(maps, 0.3).int().tolist() == [[[0, 0], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]]


def test_nothing_is_shared_where_no_step_is():
    assert rules_of([("source", "target")], Sharing("none"), 30, None) == []
    assert rules_of([("source", "target")], Sharing(steps=(0.5, 0.5)), 30, None) == []


def test_tiles_name_the_later_of_two_equal_prompts():
    assert Tile(0, (0.5, 0.5)).nearest == 1
