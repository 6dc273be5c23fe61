"""The first-step check: its error is that of the whole call's sampled rows, it comes once a site, warns and refuses."""

from __future__ import annotations

import warnings

import gate_methods
import pytest
import tiny
import torch

import genkit
from genkit.errors import UsageError
from genkit.patching.first_step import QUERIES, WARN, TooFarError, sample

#: Dense attention times 1.25: a relative error of exactly a quarter, everywhere.
QUARTER = gate_methods.Scaled(1.25)
SPARSE = genkit.MixtureOfBlock(box=(1, 2, 2), cycle=(0, 0, 1), keep=1)


class Broken(gate_methods.Full):
    """Not a number anywhere."""

    def attend(self, q, k, v, site, cache):
        return torch.full_like(q, torch.nan)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_dense_attention_is_no_distance_from_itself_and_a_quarter_is_a_quarter(name):
    """Masks, tiles, joint text and all roles included: both sides are the same queries."""
    case = tiny.build(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*from dense")
        with genkit.patch(case.model, gate_methods.Full(), check=True) as patch:
            case.run()
            found = patch.report().checks
            assert found and max(each.error for each in found) < 1e-4
        with genkit.patch(case.model, QUARTER, check=True) as patch:
            case.run()
            found = patch.report().checks
    assert [each.error for each in found] == pytest.approx([0.25] * len(found), abs=2e-3)
    assert all(each.worst_head[1] == pytest.approx(0.25, abs=5e-3) for each in found)


def test_sites_are_compared_once_and_only_where_the_method_ran():
    case, calls = tiny.build("wan"), []
    schedule = genkit.Schedule(layers="1:", steps="1:")
    with genkit.patch(case.model, SPARSE, schedule=schedule, check=genkit.Check(warn=1e9), total_steps=3) as patch:
        for step in range(3):
            case.run(timestep=torch.tensor([900 - 100 * step]))
            calls.append(len(patch.report().checks))
        found = patch.report().checks
        assert [each.site for each in found] == [site for site in patch.sites]
    assert calls[0] == 0 and calls[1] == calls[2] == len(found) and {each.step for each in found} == {1}


def test_the_error_is_that_of_the_sampled_rows():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 60, 3, 8) for _ in range(3))
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    out = dense + 0.1 * torch.randn_like(dense)
    call = gate_methods_call(dense_of=lambda a, b, c, **_: torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (a, b, c))).transpose(1, 2))  # fmt: skip
    from genkit.patching.first_step import compare

    found = compare(genkit.Check(), "x", "m", 0, (0, 2), q, k, v, out, call)
    rows = sample(60, QUERIES)
    apart, whole = (out - dense)[:, rows][:, :, [0, 2]], dense[:, rows][:, :, [0, 2]]
    assert found.error == pytest.approx(float(apart.norm() / whole.norm()), rel=1e-5)
    heads = [float(apart[:, :, i].norm() / whole[:, :, i].norm()) for i in range(2)]
    assert found.worst_head == ((0, 2)[heads.index(max(heads))], pytest.approx(max(heads), rel=1e-5))


def gate_methods_call(dense_of):
    from genkit.patching.interception import SDPA, Call

    return Call(SDPA, None, 0.0, False, None, False, None, dense_of)


def test_far_sites_are_told_and_refused_by_name():
    case = tiny.build("wan")
    before = case.run()
    with pytest.warns(UserWarning, match=r"layer blocks\.0\.attn1: .* from dense attention at step 0"):
        with genkit.patch(case.model, QUARTER, check=genkit.Check(warn=0.2)) as patch:
            case.run()
            report = patch.report()
    assert any(line.startswith("first-step check: layer blocks.") for line in report.remarks)
    assert "first-step check" in str(report)
    with pytest.raises(TooFarError, match=r"blocks\.0\.attn1.*0\.25.*at most 0\.2 is allowed"):
        with genkit.patch(case.model, QUARTER, check=0.2):
            case.run()
    with genkit.patch(case.model, QUARTER, check=0.3):
        case.run()
    assert torch.equal(case.run(), before)


def test_not_a_number_is_infinitely_far():
    case = tiny.build("wan")
    with pytest.raises(TooFarError, match="inf from dense"):
        with genkit.patch(case.model, Broken(), check=1e6):
            case.run()


@pytest.mark.parametrize("wrong", ["yes", 0, -1.0, float("nan"), [0.1]])
def test_wrong_checks_are_refused_before_the_model_is_touched(wrong):
    case = tiny.build("wan")
    with pytest.raises(UsageError, match="check"):
        genkit.patch(case.model, SPARSE, check=wrong)
    assert not case.model._forward_pre_hooks
    with pytest.raises(UsageError):
        genkit.Check(queries=0)


def test_the_sample_covers_the_sequence_and_is_the_same_every_time():
    assert sample(7, 32).tolist() == list(range(7))
    rows = sample(1792, 32)
    assert torch.equal(rows, sample(1792, 32)) and len(set((rows // 56).tolist())) == 32
    assert len({int(row) % 16 for row in rows}) > 8, "no comb that fits the frames"


def test_the_default_is_below_an_output_of_nothing():
    assert 0 < WARN <= 1
