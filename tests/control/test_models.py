"""Controls on tiny models of the real classes: bit for bit off, never a leak between rows, beside a sparse method."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.control import (
    Control,
    Extra,
    Forbid,
    ReadMaps,
    Refine,
    Reweight,
    Rows,
    ScaleKeys,
    Take,
    Where,
    align,
)
from genkit.errors import UnsupportedError, UsageError

ROWS = Rows.of("source", "target", guided=False)
MODELS = ("unet", "flux", "sd3", "wan")
_BUILT: dict[str, tiny.Tiny] = {}


@pytest.fixture(params=MODELS)
def model(request):
    if request.param not in _BUILT:
        _BUILT[request.param] = tiny.build(request.param)
    return _BUILT[request.param]


def everything(where: Where | None = None) -> list:
    """One rule of each kind, all on the target row."""
    where = where or Where()
    own = {"into": "target", "where": where}
    return [
        Take("q", "source", "target", blend=0.5, where=where),
        Extra(of="source", **own),
        Forbid(queries=torch.tensor([[1.0, 0.0]]), keys=torch.tensor([[0.0, 1.0]]), **own),
        ScaleKeys(factor=lambda seen: torch.full((seen.site.key_layout.grid_length,), 0.5), **own),
        Refine(of="source", alignment=align([1, 2, 3], [1, 3]), **own),
        Reweight(tokens=(1,), weight=2.0, **own),
        Reweight(tokens=(2,), weight=2.0, form="additive", **own),
        ReadMaps(name="m", of="target", where=where),
    ]


def batch(found: tiny.Tiny) -> int:
    return found.args.get("hidden_states", found.args.get("sample")).shape[0]


def test_without_an_active_rule_it_is_the_models_own(model):
    plain = model.run()
    with Control(model.model, everything(Where(start=0.5))) as control:
        control.begin(step=4, steps=10, rows=ROWS)
        assert torch.equal(model.run(), plain)
        report = control.report()
        assert sum(site.ran for site in report.sites) == 0
        control.begin(step=5, steps=10, rows=ROWS)
        assert not torch.equal(model.run(), plain)
        assert sum(site.ran for site in control.report().sites) > 0
    assert torch.equal(model.run(), plain)


def test_maps_are_read_while_the_output_stays_bit_for_bit(model):
    plain = model.run()
    with Control(model.model, [ReadMaps(name="m", of="target")]) as control:
        control.begin(rows=ROWS)
        assert torch.equal(model.run(), plain)
    for grid in control.maps._now["m"][1]:
        found = control.maps.latest("m", grid)
        assert found.shape[0] == 1 and float(found.min()) >= 0 and float(found.sum(-1).max()) <= 1 + 1e-5


def test_rows_that_no_rule_touches_stay_what_they_are(model):
    """Whatever the target takes and writes, the source row is that of the model alone; and what the source is does not
    reach the target by rules that do not name it."""
    half = model.run().numel() // batch(model)
    halves = lambda found: found.view(batch(model), -1) if found.numel() == 2 * half else found  # noqa: E731
    plain = halves(model.run())
    with Control(model.model, everything()) as control:
        control.begin(rows=ROWS)
        found = halves(model.run())
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[1], plain[1], atol=1e-3)


def test_with_the_control_off_rows_do_not_know_each_other(model):
    """Exact: whatever the source row is given, the target row's answer is the same, bit for bit."""
    halves = lambda: model.run(**{name: given}).view(batch(model), -1)  # noqa: E731
    name = "hidden_states" if "hidden_states" in model.args else "sample"
    given = model.args[name].clone()
    if model.run().numel() % batch(model):
        pytest.skip("several answers in one vector")
    with Control(model.model, everything(Where(start=0.5))) as control:
        control.begin(step=0, steps=10, rows=ROWS)
        before = halves()[1]
        given[0] += 1
        assert torch.equal(halves()[1], before)


def test_a_control_and_a_sparse_method_share_a_model_and_a_report():
    found = _BUILT.get("wan") or tiny.build("wan")
    plain = found.run()
    with Control(found.model, [Reweight(tokens=(1,), weight=3.0, into="target")]) as control:
        with genkit.patch(found.model, genkit.SlidingWindow(), roles="self") as sparse:
            control.begin(rows=ROWS)
            found.run()
            assert all(site.ran for site in sparse.report().sites)
        assert all(site.role == "cross" and site.ran for site in control.report().sites)
        assert "control(reweight target x3)" in str(control.report())
        with pytest.raises(UsageError, match="already has control"):
            Control(found.model, [Reweight(tokens=(1,), weight=3.0)])
    assert torch.equal(found.run(), plain)


def test_gradients_of_maps_reach_the_latents():
    found = tiny.build("unet")
    sample = found.args["sample"].clone().requires_grad_()
    rule = ReadMaps(name="m", of="target", tokens=(1,), kind="logits", grad=True, where=Where(names="mid_block"))
    with Control(found.model, [rule]) as control:
        control.begin(rows=ROWS)
        found.forward(sample=sample)
        score = control.maps.latest("m").sum()
        (gradient,) = torch.autograd.grad(score, sample)
        assert gradient[1].abs().max() > 0 and not gradient[0].any()
        step = 1e-3 * gradient / gradient.norm()
        moved = []
        for sign in (1, -1):
            found.run(sample=found.args["sample"] + sign * step)
            moved.append(float(control.maps.latest("m").sum()))
    assert (moved[0] - moved[1]) / 2e-3 == pytest.approx(float(gradient.norm()), rel=2e-2)


def test_what_is_missing_is_told():
    found = tiny.build("unet")
    with pytest.raises(UnsupportedError, match="no rule of this control reaches a layer"):
        Control(found.model, [Take("q", "source", "target", where=Where(names="nowhere"))])
    with pytest.raises(UsageError, match="at least one rule"):
        Control(found.model, [])
    with Control(found.model, [Take("q", "source", "target")]) as control:
        with pytest.raises(UsageError, match="call control.begin"):
            found.run()
        control.begin(rows=Rows.of("source", "target", "layout", guided=False))
        with pytest.raises(UsageError, match="the call has 2 rows, control.begin told of 3"):
            found.run()
        assert any("never applied" in line for line in control.report().remarks)
