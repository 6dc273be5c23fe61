"""Records of rotary positions: norm_q and the tables that a module is given make the queries at the gate."""

from __future__ import annotations

import pytest
import tiny
import torch
import zoo

import genkit
from genkit.attention.method import Method
from genkit.attention.shared_cross_attention.positions import _rows, turned
from genkit.families.lookup import family_of

NAMES = [f"tiny {name}" for name in (*tiny.FAMILIES, "sd35", "cogvideox_15")] + sorted(zoo.builders())


class Seen(Method):
    """Keeps the queries of every call, and leaves it to the model."""

    name = "seen"
    roles = ("joint",)
    calls: dict

    def attend(self, q, k, v, site, cache):
        self.calls.setdefault(site.name, (site.layout, q.clone()))
        return None


def _case(name):
    kind, _, short = name.partition(" ")
    return tiny.build(short) if kind == "tiny" else zoo.builders()[name][1]()


def _told():
    found = []
    for name in NAMES:
        try:
            family = family_of(_case(name).model)
        except Exception:  # cases of classes without a record
            continue
        if family.rotary is not None and "joint" in family.roles:
            found.append(name)
    return found


def test_records_of_every_kind_are_checked():
    assert len(_told()) > 25


@pytest.mark.parametrize("name", _told())
def test_queries_are_made_as_the_record_says(name):
    case = _case(name)
    family, given, hooks = family_of(case.model), {}, []
    args = dict(case.args() if callable(case.args) else case.args)
    if name.startswith("tiny cogvideox"):  # the pipeline hands in the tables
        t, h, w = case.grid
        turn = torch.rand(t * h * w, 8).repeat_interleave(2, -1)
        args["image_rotary_emb"] = (turn.cos(), turn.sin())
    sites = [found for found in family.find_sites(case.model) if found.role == "joint"]
    for found in sites:
        source = getattr(found.module, "norm_q", None) or family.projections(found.module).q
        if source is None:
            continue  # one projection makes queries, keys and values
        kept = given.setdefault(found.path, {})
        hooks.append(
            source.register_forward_hook(lambda m, a, out, kept=kept: kept.setdefault("q", []).append(out.clone()))
        )
        hooks.append(
            found.module.register_forward_pre_hook(
                lambda m, a, more, kept=kept: kept.update(told=more.get(family.rotary.argument)), with_kwargs=True
            )
        )
    seen = Seen()
    object.__setattr__(seen, "calls", {})
    try:
        with genkit.patch(case.model, seen), torch.no_grad():
            case.model(**args)
    finally:
        for hook in hooks:
            hook.remove()
    checked = 0
    for path, kept in given.items():
        if path not in seen.calls or "q" not in kept:
            continue
        layout, gate = seen.calls[path]
        start, stop = layout.grid_span
        made = kept["q"][0]
        if made.ndim == 3:
            made = made.unflatten(-1, (gate.shape[2], -1)) if made.shape[-1] != gate.shape[-1] else made
        if made.shape[1] == gate.shape[2] != made.shape[2]:
            made = made.transpose(1, 2)
        first, _ = _rows(made.shape[1], layout, path)
        made, gate = made[:, first : first + stop - start], gate[:, start:stop, :, : made.shape[-1]]
        mine = turned(made, kept["told"], family.rotary.pairs, layout, path)
        torch.testing.assert_close(mine, gate, atol=2e-5, rtol=1e-4)
        if family.rotary.argument and kept["told"] is not None:
            assert not torch.allclose(made, gate, atol=1e-3)
        checked += 1
    assert checked or all(getattr(found.module, "to_q", None) is None for found in sites) or not seen.calls
