"""Reference attention on tiny models of the real classes: recorded, appended, trained, saved, stacked, removed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import tiny
import torch

import genkit
from genkit.attention.reference.masks import box_mask, reweighted_loss
from genkit.attention.reference.store import References
from genkit.errors import ArtifactError, GenkitError, UnsupportedError, UsageError
from genkit.patching import time_shift

TRAINED = genkit.Reference(form="residual", rank=2)


def _record(case, patch, name="reference", **changes):
    sample = "sample" if "sample" in case.args else "hidden_states"
    changes.setdefault(sample, case.args[sample].flip(-1) * 1.5)  # another picture: one's own would change nothing
    options = {key: changes.pop(key) for key in ("strength", "mask") if key in changes}
    with torch.no_grad():
        return References.of(patch.cache).record(patch, case.model, name, **options, **{**case.args, **changes})


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_appended_on_every_family(tiny_model, name):
    case = tiny_model(name)
    reference = case.run()
    layers = sum(case.roles.get(role, 0) for role in ("self", "joint"))
    with genkit.patch(case.model, genkit.Reference()) as patch:
        assert torch.equal(case.run(), reference)  # nothing recorded: the model itself, bit for bit
        assert _record(case, patch) == layers
        changed = case.run()
        report = patch.report()
        assert report.ran == 2 * sum(report.declined.values()) >= 2 * layers  # two calls with, one without a reference
        assert torch.isfinite(changed).all() and not torch.allclose(changed, reference, atol=1e-5)
        assert torch.equal(case.run(), changed)
    assert torch.equal(case.run(), reference)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_zero_projection_on_every_family(tiny_model, name):
    """The trained form at its start is the model itself, bit for bit; opened, the reference shows."""
    case = tiny_model(name)
    reference = case.run()
    state = set(case.model.state_dict())
    with genkit.patch(case.model, TRAINED) as patch:
        _record(case, patch)
        assert torch.equal(case.run(), reference)
        tiny.open_projections(patch.weights)
        _record(case, patch)
        changed = case.run()
        assert not torch.allclose(changed, reference, atol=1e-5)
        with References.of(patch.cache).paused():
            assert torch.equal(case.run(), reference)
        assert set(case.model.state_dict()) == state
        assert {key.split("/")[0] for key in patch.weights.named_weights()} == {"reference"}
    assert torch.equal(case.run(), reference)
    assert not any(module._forward_hooks for module in case.model.modules())


def test_recorded_once_or_before_every_call(tiny_model):
    case = tiny_model("wan")
    with genkit.patch(case.model, TRAINED) as patch:
        tiny.open_projections(patch.weights)
        _record(case, patch)
        once = [case.run(timestep=torch.tensor([t, t])) for t in (900, 100)]
        again = []
        for t in (900, 100):
            _record(case, patch)
            again.append(case.run(timestep=torch.tensor([t, t])))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_reference_never_sees_the_picture(tiny_model):
    """Recorded keys depend on the reference alone, also in joint attention (no text, no other rows)."""
    case = tiny_model("sd3")
    kept = []
    for shift in (0.0, 1.0):
        with genkit.patch(case.model, genkit.Reference(), roles="joint") as patch:
            _record(case, patch, encoder_hidden_states=case.args["encoder_hidden_states"] + shift)
            kept.append(References.of(patch.cache).entries["reference"].pairs)
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) == case.roles["joint"]
    assert all(torch.equal(kept[0][site][0], kept[1][site][0]) for site in kept[0])


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit"])
def test_reference_tokens_of_the_sequence(tiny_model, name):
    """The model's own reference tokens do not read the picture: their first layer's keys still reach it."""
    case = tiny_model(name)
    reference = case.run()
    with genkit.patch(case.model, genkit.Reference(origin="sequence")) as patch:
        changed = case.run()
        report = patch.report()
    assert report.ran == case.calls and 0.5 < report.density.computed < 1
    assert not torch.allclose(changed, reference, atol=1e-6) and torch.equal(case.run(), reference)


def test_without_reference_tokens_the_model_runs(tiny_model):
    case = tiny_model("flux")
    reference = case.run()
    with genkit.patch(case.model, genkit.Reference(origin="sequence")) as patch:
        assert torch.equal(case.run(), reference) and patch.report().ran == 0
    assert patch.report().declined


def test_rows_follow_the_first(tiny_model):
    case = tiny_model("wan")
    reference = case.run().view(2, -1)
    with genkit.patch(case.model, genkit.Reference(origin="rows", group=2)) as patch:
        rows = case.run().view(2, -1)
        assert patch.report().ran == case.roles["self"]
    torch.testing.assert_close(rows[0], reference[0], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(rows[1], reference[1], atol=1e-4)


def test_adds_to_a_sparse_method_on_the_same_layers(tiny_model):
    case = tiny_model("wan")
    window = genkit.Neighborhood(size=3)
    with genkit.patch(case.model, window, backend="reference"):
        sparse = case.run()
    with genkit.patch(case.model, [window, TRAINED], backend="reference") as patch:
        _record(case, patch)
        assert torch.equal(case.run(), sparse)
        assert {site.method.split("(")[0] for site in patch.report().sites} == {"neighborhood", "reference"}
        tiny.open_projections(patch.weights)
        changed = case.run()
    assert not torch.allclose(changed, sparse, atol=1e-5)
    with pytest.raises(UsageError, match="already has"):
        genkit.patch(case.model, [window, genkit.Reference()])
    with pytest.raises(UsageError, match="already has"):
        genkit.patch(case.model, [TRAINED, genkit.Reference(form="residual", rank=4)])
    with genkit.patch(case.model, TRAINED) as first, genkit.patch(case.model, window, backend="reference"):
        _record(case, first)
        assert torch.equal(case.run(), sparse)


def test_training_reaches_the_patch_and_nothing_else():
    """A few steps on the reweighted loss: it falls, the model keeps its weights."""
    case = tiny.build("wan")
    case.model.requires_grad_(False)
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    draw = torch.Generator().manual_seed(7)
    target = torch.randn(case.args["hidden_states"].shape, generator=draw)
    boxes = box_mask([(0.2, 0.2, 0.8, 0.8)], 8, 10)[None, None].expand(1, 1, 3, 8, 10)
    with genkit.patch(case.model, genkit.Reference(form="residual", rank=2)) as patch:
        optimiser = torch.optim.Adam(patch.weights.parameters(), lr=0.03)
        references = References.of(patch.cache)
        losses = []
        for _ in range(8):
            references.record(patch, case.model, **{**case.args, "timestep": torch.zeros(2)})
            prediction = case.model(**case.args)[0]
            loss = reweighted_loss(prediction, target, boxes)
            optimiser.zero_grad()
            loss.backward()
            if not losses:  # card: with the projection at zero only the projection gets a gradient
                grads = {key: value.grad for key, value in patch.weights.named_weights().items()}
                assert all(grad.any() for key, grad in grads.items() if key.endswith("out.weight"))
                assert not any(grad is not None and grad.any() for key, grad in grads.items() if "changes" in key)
            optimiser.step()
            losses.append(loss.item())
        later = {key: value.grad for key, value in patch.weights.named_weights().items()}
        assert any(grad.any() for key, grad in later.items() if "changes.k" in key)
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())


def test_gradients_in_float64():
    """The gradient of the projection agrees with finite differences of the whole model."""
    case = tiny.build("sd3")
    case.model.double().requires_grad_(False)
    case.args = {key: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
                 for key, value in case.args.items()}  # fmt: skip
    with genkit.patch(case.model, genkit.Reference(form="residual", rank=1)) as patch:
        tiny.open_projections(patch.weights)
        references = References.of(patch.cache)
        chosen = [value for key, value in patch.weights.named_weights().items() if key.endswith(("out.bias", "k.up"))]
        assert all(value.dtype == torch.float64 for value in chosen)

        def loss():
            references.record(patch, case.model, **case.args)
            return case.forward().square().mean()

        loss().backward()
        for value in chosen[:4]:
            place = tuple(0 for _ in value.shape)
            slope = value.grad[place].item()
            values = []
            for step in (1e-5, -2e-5):
                with torch.no_grad():
                    value[place] += step
                    values.append(loss().item())
            with torch.no_grad():
                value[place] += 1e-5
            assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_form_and_rank_are_those_of_the_file_unless_asked_otherwise(tiny_model, tmp_path):
    case = tiny_model("sd3")
    path = tmp_path / "reference.safetensors"
    for rank in (0, 3, "full"):
        with genkit.patch(case.model, genkit.Reference(form="residual", rank=rank)) as patch:
            tiny.open_projections(patch.weights)
            _record(case, patch)
            expected = case.run()
            patch.weights.save(path)
        for again in (genkit.Reference(weights=str(path)), genkit.Reference(form="residual", weights=str(path))):
            with genkit.patch(case.model, again) as patch:
                _record(case, patch)
                assert torch.equal(case.run(), expected)
                assert (
                    patch.weights.made_with["reference"] | {"form": "residual", "rank": rank}
                    == (patch.weights.made_with["reference"])
                )
    with pytest.raises(ArtifactError, match="in training reference.rank was full, here it is 16"):
        genkit.patch(case.model, genkit.Reference(form="residual", rank=16, weights=str(path)))
    with genkit.patch(case.model, genkit.Reference(form="residual")) as patch:
        assert patch.weights.made_with["reference"]["rank"] == 16
    with pytest.raises(ArtifactError):
        genkit.patch(case.model, genkit.Reference(weights=str(tmp_path / "none.safetensors")))


def test_the_shipped_weights_load_as_the_page_says():
    """Rank 32, while new weights have 16."""
    pipeline = genkit.load("toy-image")
    shipped = Path(genkit.__file__).parent / "models" / "toy-image" / "reference.safetensors"
    with genkit.patch(pipeline, genkit.Reference(form="residual", weights=str(shipped))) as patch:
        assert patch.weights.made_with["reference"]["rank"] == 32 and patch.weights.count()


def test_weights_are_saved_and_loaded(tiny_model, tmp_path):
    case = tiny_model("sd3")
    path = tmp_path / "reference.safetensors"
    with genkit.patch(case.model, TRAINED, schedule=genkit.Schedule(layers="1:")) as patch:
        tiny.open_projections(patch.weights)
        _record(case, patch)
        expected = case.run()
        assert patch.weights.save(path) == path
        count = patch.weights.count()
    again = genkit.Reference(form="residual", rank=2, weights=str(path))
    with genkit.patch(case.model, again, schedule=genkit.Schedule(layers="1:")) as patch:
        assert patch.weights.count() == count > 0
        _record(case, patch)
        assert torch.equal(case.run(), expected)
        fresh = genkit.Reference(form="residual", rank=4)
    assert not list(tmp_path.glob(".genkit-*"))
    with pytest.raises(ArtifactError, match="lacks|no place"):
        genkit.patch(case.model, again)  # more layers than the file has
    with genkit.patch(case.model, fresh, schedule=genkit.Schedule(layers="1:")) as patch:
        with pytest.raises(ArtifactError, match="in the file.*in training reference.rank was 2, here it is 4"):
            patch.weights.load(path)
    with genkit.patch(case.model, genkit.Reference()) as patch, pytest.raises(UsageError, match="no trainable"):
        patch.weights.save(path)
    assert case.run().isfinite().all()


def test_damaged_and_foreign_weight_files_are_refused(tiny_model, tmp_path):
    from safetensors.torch import save_file

    case = tiny_model("sd3")
    path = tmp_path / "reference.safetensors"
    with genkit.patch(case.model, TRAINED) as patch:
        patch.weights.save(path)
        whole = path.read_bytes()
        before = {key: value.clone() for key, value in patch.weights.named_weights().items()}
        length = struct.unpack("<Q", whole[:8])[0]
        for bad in (b"", whole[:100], whole[:-4], whole + b"x", whole[:8] + b"{" + whole[9 : 8 + length] + b"??"):
            path.write_bytes(bad)
            with pytest.raises(ArtifactError, match=str(path)):
                patch.weights.load(path)
        save_file({"a": torch.zeros(2)}, path)
        with pytest.raises(ArtifactError, match="no weights of genkit"):
            patch.weights.load(path)
        with pytest.raises(ArtifactError, match="cannot read"):
            patch.weights.load(tmp_path / "missing.safetensors")
        with pytest.raises(UsageError, match="safetensors"):
            patch.weights.save(tmp_path / "weights.bin")
        assert all(torch.equal(value, before[key]) for key, value in patch.weights.named_weights().items())


def test_time_shift_moves_recorded_keys():
    """Frame 0 shifted by 2 is rotated like frame 2 of a clip of equal frames (first layer, before they mix)."""
    for name in ("wan", "hunyuan_video"):
        case = tiny.build(name)
        frame = case.args["hidden_states"][:, :, :1]
        kept = []
        with genkit.patch(case.model, genkit.Reference()) as patch:
            _record(case, patch, hidden_states=frame.expand(-1, -1, 3, -1, -1))
            with time_shift(case.model, 2):
                _record(case, patch, "shifted", hidden_states=frame)
            entries = References.of(patch.cache).entries
            for entry in entries.values():
                kept.append(next(iter(entry.pairs.values())))
        (long, values), (short, single) = kept
        torch.testing.assert_close(short, long[:, 40:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(single, values[:, 40:], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(short, long[:, :20], atol=1e-3)
    case = tiny.build("wan")
    with pytest.raises(UsageError, match="positions"), time_shift(case.model, 40):
        case.run()
    with pytest.raises(UnsupportedError, match="img_ids"), time_shift(tiny.build("flux").model, 1):
        pass


def test_recording_is_no_sampling_step(tiny_model):
    """A pass in the middle of a loop counts no step, runs no other method and leaves other patches alone."""
    case = tiny_model("wan")
    with genkit.patch(case.model, genkit.Reference(), schedule=genkit.Schedule(steps="1:"), total_steps=3) as patch:
        for t in (900, 600, 300):
            _record(case, patch, timestep=torch.zeros(2))
            case.run(timestep=torch.tensor([t, t]))
        report = patch.report()
    assert report.steps == 3 and report.sites[0].steps == (1, 2) and report.sites[0].ran == 5
    assert report.sites[0].outside == 1


def test_refusals_name_the_reason():
    case = tiny.build("wan")
    with genkit.patch(case.model, TRAINED) as patch:
        references = References.of(patch.cache)
        case.model.enable_gradient_checkpointing()
        with pytest.raises(UnsupportedError, match="checkpointing"):
            references.record(patch, case.model, **case.args)
        with pytest.raises(GenkitError, match="no layer"):
            references.record(patch, lambda **inputs: None)
        with pytest.raises(UsageError, match="strength"):
            references.record(patch, case.model, strength=-1)
        case.model.disable_gradient_checkpointing()
        case.model.blocks[0].attn1.fuse_projections()
        with pytest.raises(UnsupportedError, match="fused"):
            _record(case, patch)
        assert not patch.cache.aside and references.recording is None
    with pytest.raises(UsageError, match="all 2 heads"):
        genkit.patch(case.model, TRAINED, schedule=genkit.Schedule(heads="0:1"))
    assert not any(module._forward_hooks for module in case.model.modules())


def test_training_inside_compiled_graphs_is_refused():
    torch._dynamo.reset()
    case = tiny.build("wan")
    case.model.blocks = case.model.blocks[:1]
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    with genkit.patch(case.model, TRAINED):
        with pytest.raises(Exception, match="cannot be trained inside torch.compile"):
            compiled(**case.args)
    torch._dynamo.reset()


def test_a_whole_pipeline(tmp_path):
    """Recorded before the run, or between two: the loop's steps stay right, every step and branch is served."""
    from tiny_wan import build_tiny_wan

    pipe = genkit.load(str(build_tiny_wan(tmp_path / "wan")))
    draw = torch.Generator().manual_seed(1)
    latents, picture = (torch.randn(1, 4, frames, 4, 6, generator=draw) for frames in (2, 1))
    text = torch.randn(1, 16, 32, generator=draw)

    def run():
        return pipe("a red circle", num_inference_steps=3, height=32, width=48, num_frames=5, guidance_scale=2.0,
                    latents=latents.clone(), output_type="latent", max_sequence_length=16).frames  # fmt: skip

    plain = run()
    with genkit.patch(pipe, genkit.Reference(strength=2.0)) as patch:
        references = References.of(patch.cache)
        with torch.no_grad(), time_shift(pipe.transformer, 2):
            layers = references.record(
                patch, pipe.transformer, hidden_states=picture, timestep=torch.zeros(1), encoder_hidden_states=text
            )
        first = run()
        report = patch.report()
        assert report.steps == 3 and all(site.steps == (0, 1, 2) for site in report.sites)
        assert report.ran == layers * (1 + 3 * 2) and not report.declined
        assert torch.equal(run(), first) and not torch.allclose(first, plain, atol=1e-4)
    assert torch.equal(run(), plain)
