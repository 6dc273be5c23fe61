"""Every family on a tiny model of the real class: all calls caught, layouts true, equal when full, restored exactly."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
import torch
from gate_methods import Full, Recorder, Scaled

import genkit
from genkit.families.lookup import records

ALL = tiny.names()
# The layers of a UNet see text that earlier layers changed: tests/families has its first joint layer alone.
JOINT = [name for name in ALL if "joint" in tiny.build(name).roles and not name.startswith("unet")]


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_full_attention_through_the_gate(tiny_model, name):
    case = tiny_model(name)
    reference = case.run()
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    attributes = {key: set(module.__dict__) for key, module in case.model.named_modules()}
    with genkit.patch(case.model, Full()) as handle:
        _close(case.run(), reference)
        report = handle.report()
        with_scaled = {key for key in case.model.state_dict()}
    assert report.calls == report.ran == case.calls and not report.declined and report.outside == 0
    assert Counter(site.role for site in report.sites) == case.roles
    assert report.forwards == 1 and report.density.computed == 1.0
    assert torch.equal(case.run(), reference)
    assert with_scaled == set(state) and all(torch.equal(x, state[key]) for key, x in case.model.state_dict().items())
    assert attributes == {key: set(module.__dict__) for key, module in case.model.named_modules()}
    for module in case.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._forward_hooks_always_called and not module._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize("name", ALL)
def test_every_layer_reaches_the_method(tiny_model, name):
    """Layer by layer: a method that changes the result there changes the output (no call slips by)."""
    case = tiny_model(name)
    reference = case.run()
    for role, layers in case.roles.items():
        for layer in {0, layers - 1}:
            # Text attention in the last joint block feeds nothing, but its grid queries do.
            with genkit.patch(case.model, Scaled(), roles=role, schedule=genkit.Schedule(layers=layer)) as handle:
                changed = case.run()
                assert len(handle.sites) == 1
            assert not torch.allclose(changed, reference, atol=1e-6), (role, layer)
    assert torch.equal(case.run(), reference)


@pytest.mark.parametrize("name", ALL)
def test_layouts(tiny_model, name):
    case = tiny_model(name)
    recorder = Recorder()
    with genkit.patch(case.model, recorder, roles="self" if name.startswith("unet") else ["self", "joint"]):
        case.run()
    sites = [site for site, _ in recorder.seen]
    grids = {site.layout.grid for site in sites}
    if name.startswith("unet"):
        first = sites[0].layout.grid
        assert first == case.grid and {(1, (first[1] + 1) // 2, (first[2] + 1) // 2)} >= grids - {first}
        assert [site.layer for site in sites] == list(range(case.roles["self"]))
        return
    assert grids == {case.grid}
    for site, keys in recorder.seen:
        assert site.layout.length == keys.shape[1] and site.layout == site.key_layout
        assert site.layers == case.roles[site.role]
    reference = next((part.length for part in sites[0].layout.segments if part.name == "reference"), 0)
    assert reference == case.extra
    spans = [site.layout.span("text") for site in sites if site.role == "joint"]
    assert max((stop - start for start, stop in spans), default=case.text) == case.text


@pytest.mark.parametrize("name", JOINT)
def test_text_is_where_the_layout_says(tiny_model, name):
    """Changing the text moves exactly the text keys of the first joint layer."""
    case = tiny_model(name)
    pooler = getattr(getattr(case.model, "time_embed", None), "pooler", None)
    # Mochi also feeds the pooled text to the modulation of every token; that way is closed here.
    closed = pooler.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) if pooler else None
    runs = []
    for shift in (0.0, 1.0):
        recorder = Recorder()
        with genkit.patch(case.model, recorder, roles="joint", schedule=genkit.Schedule(layers=0)):
            case.run(encoder_hidden_states=case.args["encoder_hidden_states"] + shift)
        runs.append(recorder.seen[0])
    if closed is not None:
        closed.remove()
    (site, before), (_, after) = runs
    moved = (before != after).flatten(2).any(-1)[0].nonzero().flatten().tolist()
    start, stop = site.layout.span("text")
    hidden = [] if site.key_mask is None else (~site.key_mask[0]).nonzero().flatten().tolist()
    assert set(moved) | set(hidden) >= set(range(start, stop)) and set(moved) <= set(range(start, stop))


GRID_ARGUMENT = dict.fromkeys(("unet", "unet_xl", "unet_added_keys"))


@pytest.mark.parametrize("name", [name for name in ALL if GRID_ARGUMENT.get(name, "yes")])
def test_the_grid_is_in_raster_order(tiny_model, name):
    """Changing one place of the latents moves exactly the key that the layout gives that place."""
    case = tiny_model(name)
    latents = case.args["hidden_states"]
    t, h, w = case.grid
    place = (t - 1, h - 2, w - 1)
    token = (place[0] * h + place[1]) * w + place[2]
    changed = latents.clone()
    if latents.ndim == 3:
        changed[:, token] += 1
    else:
        box = [slice(None)] * latents.ndim
        for name_of_axis, at, count in zip("THW", place, case.grid, strict=True):
            if name_of_axis in case.axes:
                axis = case.axes.index(name_of_axis)
                step = latents.shape[axis] // count
                box[axis] = slice(at * step, (at + 1) * step)
        changed[tuple(box)] += 1
    seen = []
    for hidden_states in (latents, changed):
        recorder = Recorder()
        with genkit.patch(case.model, recorder, roles=["self", "joint"]):
            case.run(hidden_states=hidden_states)
        seen.append(recorder.seen[0])
    (site, before), (_, after) = seen
    moved = (before != after).flatten(2).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [site.layout.grid_span[0] + token]


@pytest.mark.parametrize("name", ALL)
def test_real_methods(tiny_model, name):
    """Neighborhood with a full window equals the model; small windows and Radial run everywhere and are counted."""
    case = tiny_model(name)
    reference = case.run()
    served = sum(case.roles.get(role, 0) for role in ("self", "joint"))
    for method in (genkit.Neighborhood(size="all"), genkit.Radial(block_size=16)):
        with genkit.patch(case.model, method, backend="reference"):
            out = case.run()
        if method.name == "neighborhood":
            _close(out, reference)
        assert out.isfinite().all()
    with genkit.patch(case.model, genkit.Neighborhood(size=3), backend="reference") as handle:
        out, report = case.run(), handle.report()
    assert not torch.allclose(out, reference, atol=1e-4) and out.isfinite().all()
    assert len(report.sites) == served and not report.declined and report.density.computed < 0.7
    assert torch.equal(case.run(), reference)


@pytest.mark.parametrize("name", ["flux_kontext", "hunyuan_video_padded", "wan", "qwen_image_edit", "mochi"])
def test_a_window_means_what_its_mask_says(tiny_model, name):
    """The small window through plan, tiles and operator equals dense attention under the method's own mask."""
    from dataclasses import dataclass

    case = tiny_model(name)
    window = genkit.Neighborhood(size=3, stride=2, causal=(True, False, False))

    @dataclass(frozen=True)
    class Masked(Full):
        name = "masked"
        roles = ("self", "joint")

        def attend(self, q, k, v, site, cache):
            mask = window.mask(site.layout)[None, None]
            if site.key_mask is not None:
                mask = mask & site.key_mask[:, None, None]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=site.scale).transpose(1, 2)

    with genkit.patch(case.model, Masked()):
        expected = case.run()
    with genkit.patch(case.model, window, backend="reference"):
        _close(case.run(), expected)


def test_cross_attention_streams(tiny_model):
    """Which keys a cross-attention call has, by name."""
    recorder = Recorder()
    with genkit.patch(tiny_model("wan_i2v").model, recorder, roles="cross", schedule=genkit.Schedule(layers=0)):
        tiny_model("wan_i2v").run()
    keys = [(site.key_layout.segments[0].name, site.key_layout.length) for site, _ in recorder.seen]
    assert keys == [("image", 5), ("text", 512)]
    recorder = Recorder()
    case = tiny_model("ltx2")
    with genkit.patch(case.model, recorder, schedule=genkit.Schedule(layers=0)):
        case.run()
    streams = {s.role: (s.layout.segments[0].name, s.key_layout.segments[0].name) for s, _ in recorder.seen}
    assert streams == {
        "self": ("grid", "grid"), "cross": ("grid", "text"), "audio_self": ("audio", "audio"),
        "audio_cross": ("audio", "text"), "audio_to_video": ("grid", "audio"), "video_to_audio": ("audio", "grid"),
    }  # fmt: skip


def test_ltx_condition_tokens_come_first():
    """The condition pipeline gives only coordinates and puts tokens of a later frame before the video."""
    from genkit.families.ltx import FAMILY

    def coordinates(frames, height, width, start=0):
        places = (torch.arange(frames) * 8 + start, torch.arange(height), torch.arange(width))
        axes = torch.meshgrid(*places, indexing="ij")
        return torch.stack([axis.flatten() for axis in axes]).float()

    cases = [(0, (3, 4, 5)), (20, (3, 4, 5)), (40, (2, 4, 5)), (20, (1, 4, 5)), (5, (3, 1, 5)), (4, (3, 4, 1))]
    for extra, grid in cases:
        before = coordinates(max(extra // 20, 1), *grid[1:], start=16)[:, :extra]
        coords = torch.cat([before, coordinates(*grid)], dim=1)[None]
        tokens = torch.zeros(1, coords.shape[2], 4)
        layout = FAMILY.streams(None, {"hidden_states": tokens, "video_coords": coords})["main"]
        assert layout.grid == grid and layout.grid_span == (extra, tokens.shape[1]), (extra, grid)


def test_keyframes_after_the_video_in_ltx2(tiny_model):
    from genkit.families.ltx2 import FAMILY

    args = tiny_model("ltx2").args | {"hidden_states": torch.zeros(1, 72, 4)}
    layout = FAMILY.streams(None, args)["main"]
    assert layout.grid_span == (0, 60) and layout.span("keyframe") == (60, 72)


def test_listing():
    listed = genkit.families()
    assert len(listed) >= 10 and len({family.name for family in listed}) == len(listed)
    classes = [name for family in listed for name in family.classes]
    import diffusers

    assert all(hasattr(diffusers, name) for name in classes)
    assert all(hasattr(diffusers, name) for family in listed for name in family.pipelines)
    assert {family.name for family in records()} == {family.name for family in listed}


def test_the_room_called_families_does_not_hide_the_function():
    import genkit.families.lookup as lookup

    assert genkit.families() == lookup.families()
