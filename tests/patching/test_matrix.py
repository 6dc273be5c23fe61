"""The table method x family against reality: every cell patches a tiny model of the real class and runs, or refuses."""

from __future__ import annotations

import pytest
import tiny
import torch

import genkit
from genkit.errors import UnsupportedError
from genkit.families.lookup import family_of, records
from genkit.patching.matrix import Cell, Row, matrix, rows

# Settings under which a method hides something on 60 tokens; what a method is for must not depend on them.
SMALL = {
    "agent": {"cell": (1, 2, 2)},
    "anchor_window": {"trained": 1, "window": 0, "first": 0, "period": 3},
    "biased": {"bias": "distance:t=0.5:h=0.5:w=0.5", "block": 8},
    "block_select": {"block": 8, "keep": 2},
    "clear": {"radius": 1.5},
    "cross_modal_context": {"window": 1.0},
    "mixture_of_block": {"temporal": 1, "spatial": (2, 2), "box": (1, 2, 2)},
    "mixture_of_heads": {"shared": 0, "keep": 1, "block": 8, "untrained": True},
    "layer_router": {"sparse": "block_select block=8 keep=2", "untrained": True},
    "neighborhood": {"size": 3},
    "pyramid": {"block": 8, "thresholds": (0.2, 0.3, 0.5, 0.6)},
    "radial": {"block_size": 16, "near": "decay", "sink": False, "decay_factor": 0.01, "thin_below": 128},
    "shards": {"block": 8, "stride": 3, "local": 0},
    "shifted_groups": {"group": 1, "sink": "none"},
    "linear_attention": {},
    "long_heads": {"trained": 1, "near": 0, "first": 0},
    "sliding_window": {"base": (2, 2)},
    "sparse_linear": {"sparse": "block_select block=8 keep=2"},
}


def served_or_told(site):
    """Whether calls of a layer were served, declined with a reason, or left to the model by the method itself: text,
    and what an untrained router decides."""
    left = site.role == "cross" or site.method.startswith("layer_router")
    return bool(site.ran or site.declined or (left and site.outside))


def small(row: Row) -> dict:
    """The settings for a row; merging has no cells."""
    return {} if row.settings.get("agents") == "merge" else SMALL.get(row.method, {})


# Methods that see one frame as dense on purpose.
SAME_ON_IMAGES = {"anchor_window", "long_heads", "radial", "shifted_groups"}
# Methods that begin as the model itself; tests/patching/test_patch_layer_router.py has what they do later.
SAME_UNTRAINED = {"layer_router"}
# The first tiny model of every kind of family, of SD3 and the UNet the one with all roles. The other families are
# patched in tests/families/test_every_class.py.
TINY = {family_of(tiny.build(name).model).name: name for name in tiny.FAMILIES} | {
    "SD3": "sd35", "UNet2DCondition": "unet_added_keys",
}  # fmt: skip
CELLS = matrix()


def test_the_matrix_is_whole():
    from genkit.attention import registry

    assert {row.method for row in rows()} == set(registry.names())
    assert len(CELLS) == len(rows()) * len(records())
    assert {cell.family for cell in CELLS} == {family.name for family in records()} >= set(TINY)
    assert all(cell.fits != bool(cell.reason) for cell in CELLS)
    for row in rows():
        assert row.build(**small(row)).name == row.method


def test_known_cells():
    served = {(str(cell.row), cell.family): cell for cell in CELLS}
    assert served["radial", "Wan"].roles == ("self",) and served["radial", "Flux"].roles == ("joint",)
    assert served["sliding_window (dual=true)", "Wan"].roles == ("self", "cross")
    assert "dual=true" in served["sliding_window", "Wan"].reasons["cross"]
    assert not served["sliding_window (dual=true)", "Flux"].fits
    assert "dual=false" in served["sliding_window (dual=true)", "Flux"].reason
    assert served["agent (agents=merge)", "UNet2DCondition"].roles == ("self",)
    assert "single images" in served["agent (agents=merge)", "Wan"].reason


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if cell.family in TINY], ids=lambda cell: f"{cell.row}-{cell.family}"
)
def test_every_cell_is_true(tiny_model, cell: Cell):
    case = tiny_model(TINY[cell.family])
    method = cell.row.build(**small(cell.row))
    if not cell.fits:
        assert genkit.why_not(case.model, method) is not None
        with pytest.raises(UnsupportedError) as refused:
            genkit.patch(case.model, method)
        if set(cell.reasons) & set(method.roles):
            assert any(reason in str(refused.value) for reason in cell.reasons.values())
        else:  # the family has no attention of the method's kinds: the message names both
            assert all(role in str(refused.value) for role in (*method.roles, *cell.reasons))
        return
    assert genkit.why_not(case.model, method) is None
    reference = case.run()
    with genkit.patch(case.model, method, backend="reference", total_steps=4) as handle:
        out, report = case.run(), handle.report()
    assert {site.role for site in report.sites} == set(cell.roles)
    assert all(map(served_or_told, report.sites)) and out.isfinite().all()
    still = method.name in SAME_UNTRAINED or (method.name in SAME_ON_IMAGES and case.grid[0] == 1)
    if method.name in SMALL and not still:
        assert report.ran and not torch.allclose(out, reference, atol=1e-5)
    assert torch.equal(case.run(), reference)


def test_a_method_without_its_settings_is_told():
    broken = Row("neighborhood", {"size": "x"})
    from genkit.patching.matrix import _cell

    cell = _cell(broken, records()[0])
    assert not cell.fits and "neighborhood.size" in cell.reason
