"""Every denoiser class of Diffusers is recorded or out of scope, and a patch of every recorded one is right."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
import zoo

import genkit
from genkit.attention.method import Density, Method
from genkit.attention.site import ROLES, among
from genkit.errors import UnsupportedError
from genkit.families.lookup import diffusers_class, family_of, records
from genkit.families.out_of_scope import OUT_OF_SCOPE

NAMES = sorted(zoo.builders())
# Settings under which a method hides something on some dozens of tokens.
SPARSE = {
    "neighborhood": genkit.Neighborhood(size=3),
    "radial": genkit.Radial(block_size=16, near="decay", sink=False, decay_factor=0.01, thin_below=128),
    "mixture_of_block": genkit.MixtureOfBlock(temporal=1, spatial=(2, 2), box=(1, 2, 2)),
}


@dataclass(frozen=True)
class Dense(Method):
    """Softmax over every visible key in float64; keeps (site, keys) of every call."""

    name = "dense"
    roles = ROLES
    needs_grid = False
    exact = True
    seen: list = None

    @property
    def hides_grid(self):
        return True

    def __hash__(self):
        return id(self)

    takes_pairs = True

    def attend_pairs(self, q, k, v, site, cache, pairs):
        return self.attend(q, k, v, site, cache, pairs)

    def attend(self, q, k, v, site, cache, pairs=None):
        self.seen.append((site, k.clone()))
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        scale = site.scale if site.scale is not None else q.shape[-1] ** -0.5
        logits = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale
        if site.key_mask is not None:
            logits = logits.masked_fill(~site.key_mask[:, None, None], float("-inf"))
        if pairs is not None:
            logits = logits.masked_fill(~pairs[:, None], float("-inf"))
        return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v.double()).to(q.dtype)

    def density(self, site, cache):
        return Density(1.0, 1.0)


def _close(case: zoo.Case, out: torch.Tensor) -> None:
    torch.testing.assert_close(out, case.reference, atol=case.tolerance * float(case.reference.abs().max()), rtol=0)


def _kind(role: str) -> bool:
    """Whether methods of self- and joint attention work on a role."""
    return among(role, ("self", "joint"))


# --- the walk ----------------------------------------------------------------------------------------------------


def _denoiser_classes() -> dict[str, type]:
    """Every model that Diffusers defines among its transformers and UNets."""
    from diffusers.models import transformers, unets
    from diffusers.models.modeling_utils import ModelMixin

    found = {}
    for package in (transformers, unets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == module.name:
                    found[name] = value
    return found


def test_every_denoiser_class_is_recorded_or_out_of_scope():
    """A new release of Diffusers with a new class is one red line here."""
    known = {name for family in records() for name in family.classes} | set(OUT_OF_SCOPE)
    assert sorted(set(_denoiser_classes()) - known) == []


def test_what_is_out_of_scope_exists_and_is_not_recorded():
    recorded = [name for family in records() for name in family.classes]
    assert len(recorded) == len(set(recorded)), "a class belongs to two records"
    assert not set(recorded) & set(OUT_OF_SCOPE) and set(OUT_OF_SCOPE) <= set(_denoiser_classes())
    assert all(len(reason) > 20 for reason in OUT_OF_SCOPE.values())


def test_the_page_of_classes_is_that_of_the_records():
    script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "model_classes_page.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/model_classes_page.py"


def test_every_recorded_class_has_a_tiny_model():
    built = {diffusers_class(zoo.build(name).model) for name in NAMES}
    built |= {diffusers_class(tiny.build(name).model) for name in tiny.names()}
    assert {name for family in records() for name in family.classes} == built - set(OUT_OF_SCOPE)


def test_records_name_arguments_that_exist():
    classes = _denoiser_classes()
    for family in records():
        known = [set(inspect.signature(classes[name].forward).parameters) for name in family.classes]
        assert all({family.sample, family.timestep} <= names | {""} for names in known), family.name
        assert set(family.reads) <= set.union(*known), family.name


# --- every class -------------------------------------------------------------------------------------------------


def _case(name: str, wanted: Callable[[zoo.Case], object] = lambda case: not case.refused) -> zoo.Case:
    """The case of a name, where a test is about such cases."""
    case = zoo.build(name)
    if not wanted(case):
        pytest.skip("not this kind of case")
    return case


def _served_by_methods(case: zoo.Case) -> bool:
    return not case.refused and any(map(_kind, case.calls))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_says_why(name):
    case = _case(name, lambda case: case.refused)
    reason = genkit.why_not(case.model, genkit.Neighborhood())
    assert reason is not None and case.refused in reason
    with pytest.raises(UnsupportedError) as error:
        genkit.patch(case.model, genkit.Neighborhood())
    assert str(error.value) == reason


@pytest.mark.parametrize("name", NAMES)
def test_dense_attention_through_the_gate(name):
    """All calls of the record's modules are caught and counted; the output is the model's; nothing stays behind."""
    case, method = _case(name), Dense([])
    reference = case.reference
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    attributes = {key: set(module.__dict__) for key, module in case.model.named_modules()}
    with genkit.patch(case.model, method) as handle:
        _close(case, case.run())
        report = handle.report()
    ran: Counter = Counter()
    for site in report.sites:
        ran[site.role] += site.ran
    assert +ran == Counter(case.calls)
    assert sum(report.declined.values()) == sum(case.declined.values()) and report.outside == 0
    for piece, count in case.declined.items():
        assert sum(times for reason, times in report.declined.items() if piece in reason) == count, report.declined
    assert sum(site.skipped for site in report.sites) == case.skipped
    assert sum(not (site.ran or site.declined or site.skipped) for site in report.sites) == case.silent
    grids = [site.layout.grid for site, _ in method.seen if site.layout.has_grid]
    assert not grids or grids[0] == case.grid
    assert all(site.layout.length and site.key_layout.length == k.shape[1] for site, k in method.seen)
    assert torch.equal(case.run(), reference)
    after = case.model.state_dict()
    assert set(after) == set(state) and all(torch.equal(after[key], value) for key, value in state.items())
    assert attributes == {key: set(module.__dict__) for key, module in case.model.named_modules()}
    for module in case.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("name", NAMES)
def test_methods(name):
    """A full window is the model's own attention; sparse methods act, and the report tells what ran."""
    case = _case(name, _served_by_methods)
    wanted = sum(count for role, count in case.calls.items() if _kind(role))
    with genkit.patch(case.model, genkit.Neighborhood(size="all"), backend="reference") as handle:
        _close(case, case.run())
        assert handle.report().ran == wanted
    video = family_of(case.model).video  # radial sees a single image as dense
    for method in (SPARSE[name] for name in SPARSE if video or name != "radial"):
        with genkit.patch(case.model, method, backend="reference") as handle:
            out, report = case.run(), handle.report()
        if case.padded and not method.hides_grid:
            assert report.ran == 0 and all("hides tokens of the grid" in reason for reason in report.declined)
            continue
        served = wanted if method.takes_pairs else wanted - case.paired
        assert out.isfinite().all() and report.ran == served, (method.name, report.declined)
        if not served:
            assert all("differs between queries" in reason for reason in report.declined)
            continue
        dense = report.density is not None and report.density.dense
        assert dense or not torch.allclose(out, case.reference, atol=1e-5), method.name
        assert not dense or method.name != "neighborhood"
        _a_loop_is_counted(case, method)
    assert torch.equal(case.run(), case.reference)


def _a_loop_is_counted(case: zoo.Case, method: Method) -> None:
    """Two calls of a bare model with falling noise levels are two steps."""
    clock = family_of(case.model).timestep
    if method.name != "neighborhood" or not clock:
        return
    with genkit.patch(case.model, method, backend="reference") as handle:
        for share in (1.0, 0.5):
            level = case.given[clock]
            case.run(**{clock: (level * share).to(level.dtype)})
        assert next(site for site in handle.report().sites if site.ran).steps == (0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_door(name):
    """Processors do what a patch does, where the class takes processors, and refuse where it does not."""
    case, method = _case(name, _served_by_methods), SPARSE["neighborhood"]
    if not hasattr(case.model, "set_attn_processor"):
        with pytest.raises(UnsupportedError, match="use genkit.patch"):
            genkit.attn_processors(case.model, method)
        return
    with genkit.patch(case.model, method, backend="reference"):
        expected = case.run()
    own = dict(case.model.attn_processors)
    case.model.set_attn_processor(genkit.attn_processors(case.model, method, backend="reference"))
    assert torch.equal(case.run(), expected)
    case.model.set_attn_processor(own)
    assert torch.equal(case.run(), case.reference) and not genkit.patches(case.model)


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_true(name):
    """Changing one place of the latents moves exactly the key that the layout gives that place; text likewise."""
    case = _case(name, lambda case: not case.refused and (case.axes or case.moves))
    family = family_of(case.model)

    def keys(**changes):
        method = Dense([])
        with genkit.patch(case.model, method, roles=[role for role in family.roles if role != "cross"]):
            case.run(**changes)
        return method.seen

    before = keys()
    site = next(site for site, _ in before if site.layout.has_grid)
    place = next(number for number, (each, _) in enumerate(before) if each is site)

    def moved(**changes):
        after = keys(**changes)
        return (before[place][1] != after[place][1]).flatten(2).any(-1).any(0).nonzero().flatten().tolist()

    if case.axes:
        latents = case.given[family.sample]
        changed, token = _one_place_changed(latents, case.grid, case.axes)
        assert moved(**{family.sample: changed}) == [site.layout.grid_span[0] + token]
    for segment, argument in case.moves.items():
        start, stop = site.layout.span(segment)
        hidden = set() if site.key_mask is None else set((~site.key_mask.any(0)).nonzero().flatten().tolist())
        found = set(moved(**{argument: _shifted(case.given[argument])}))
        assert found and found <= set(range(start, stop)) and set(range(start, stop)) <= found | hidden, segment


def _one_place_changed(latents, grid, axes):
    """Latents with one patch changed, and the number of its token in raster order."""
    t, h, w = grid
    place = (t - 1, max(h - 2, 0), w - 1)
    token = (place[0] * h + place[1]) * w + place[2]
    if isinstance(latents, (list, tuple)):
        return type(latents)(_one_place_changed(each, grid, axes)[0] for each in latents), token
    changed = latents.clone()
    if axes == "BNC":
        changed[:, token] += 1
        return changed, token
    box = [slice(None)] * latents.ndim
    for axis, at, count in zip("THW", place, grid, strict=True):
        if axis in axes:
            step = latents.shape[axes.index(axis)] // count
            box[axes.index(axis)] = slice(at * step, (at + 1) * step)
    changed[tuple(box)] += 1
    return changed, token


def _shifted(value):
    return [_shifted(each) for each in value] if isinstance(value, (list, tuple)) else value + 1
