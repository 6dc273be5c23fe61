"""Cross-modal context on tiny LTX-2 models and a tiny LTX2Pipeline: times, routes, guidance, training, stacking."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Recorder

import genkit
from genkit.attention.cross_modal_context.route import ContextRoute
from genkit.errors import ArtifactError, UnsupportedError, UsageError

PLAIN = genkit.CrossModalContext(partition="none", tokens=4)
ROLES = ("audio_to_video", "video_to_audio")


def _route(patch, tasks):
    ContextRoute.of(patch.cache).set(tasks)


def _values(patch, scale=1.0):
    """Trained-looking values, which start at zero."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in patch.weights.named_parameters():
            if name.endswith("values"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def _streams(case, **changes):
    """Video and audio output of one forward."""
    with torch.no_grad():
        return case.model(**{**case.args, **changes})


def test_times_of_both_streams(tiny_model):
    """Every token knows its time, from the model's own tracker or from coordinates handed in."""
    case = tiny_model("ltx2")
    seen = []
    for changes in ({}, {"fps": 12.0}, {"video_coords": None, "audio_coords": None}):
        if "video_coords" in changes:
            changes = {
                "video_coords": case.model.rope.prepare_video_coords(2, 3, 4, 5, "cpu", fps=25.0),
                "audio_coords": case.model.audio_rope.prepare_audio_coords(2, 5, "cpu"),
            }
        recorder = Recorder()
        with genkit.patch(case.model, recorder, roles=ROLES):
            case.run(**changes)
            case.run(**changes)
        sites = [site for site, _ in recorder.seen]
        assert all(site.layout is sites[0].layout or site.layout is sites[1].layout for site in sites)
        assert sites[0].layout is sites[1].key_layout  # found again, not made again
        seen.append(sites[0])
    video, audio = seen[0].layout, seen[0].key_layout
    assert video.grid == (3, 4, 5) and len(video.times) == 60 and len(set(video.times)) == 3
    assert video.intervals[0] == pytest.approx((0, 1 / 24)) and video.intervals[20] == pytest.approx((1 / 24, 9 / 24))
    assert audio.intervals[0] == pytest.approx((0, 0.01)) and audio.intervals[2] == pytest.approx((0.05, 0.09))
    assert seen[1].layout.intervals[20] == pytest.approx((1 / 12, 9 / 12))
    assert seen[2].layout.intervals[20] == pytest.approx((1 / 25, 9 / 25)) and seen[2].key_layout == audio


def test_appended_tokens_need_coordinates(tiny_model):
    from genkit.families.ltx2 import FAMILY

    case = tiny_model("ltx2")
    args = case.args | {"hidden_states": torch.zeros(1, 62, 4)}
    assert FAMILY.streams(case.model, args)["main"].times is None
    coords = torch.zeros(1, 3, 62, 2)
    coords[:, 0, 60:] = torch.tensor([0.5, 0.75])
    layout = FAMILY.streams(case.model, args | {"video_coords": coords})["main"]
    assert layout.intervals[60:] == ((0.5, 0.75),) * 2 and layout.span("keyframe") == (60, 62)
    coords[:, 0, 61] = 1.0
    assert FAMILY.streams(case.model, args | {"video_coords": coords})["main"].intervals[61] == (1.0, 1.0)


def test_partner_route_and_full_window_are_the_model(tiny_model):
    case = tiny_model("ltx2")
    reference = case.run()
    with genkit.patch(case.model, PLAIN) as patch:
        _values(patch)
        assert not torch.allclose(case.run(), reference, atol=1e-5)
        _route(patch, "partner")
        torch.testing.assert_close(case.run(), reference, atol=2e-6, rtol=2e-5)
        assert patch.report().ran == 2 * 4 and not patch.report().declined
    with genkit.patch(case.model, genkit.CrossModalContext(window=7, frames=5)):
        torch.testing.assert_close(case.run(), reference, atol=2e-6, rtol=2e-5)
    assert torch.equal(case.run(), reference)


def test_partition_changes_what_is_heard(tiny_model):
    case = tiny_model("ltx2")
    reference = case.run()
    with genkit.patch(case.model, genkit.CrossModalContext(window=1)) as patch:
        changed = case.run()
        report = patch.report()
    assert report.ran == 4 and 0 < report.density.computed < 0.9
    assert not torch.allclose(changed, reference, atol=1e-4) and torch.equal(case.run(), reference)


def test_context_alone_with_zero_values_is_isolation():
    case = tiny.build("ltx2")
    for block in case.model.transformer_blocks:
        for module in (block.audio_to_video_attn, block.video_to_audio_attn):
            torch.nn.init.zeros_(module.to_out[0].bias)
    isolated = case.run(isolate_modalities=True)
    with genkit.patch(case.model, PLAIN) as patch:
        _route(patch, "context")
        assert torch.equal(case.run(), isolated)
        _route(patch, "t2av")
        assert not torch.equal(case.run(), isolated)
        assert torch.equal(case.run(isolate_modalities=True), isolated)  # guidance asks for the same pass
        _values(patch)
        assert not torch.equal(case.run(isolate_modalities=True), isolated)
    with genkit.patch(case.model, genkit.CrossModalContext(partition="none", tokens=4, guidance=False)) as patch:
        _values(patch)
        assert torch.equal(case.run(isolate_modalities=True), isolated)
    other = tiny.build("ltx2")
    with genkit.patch(other.model, PLAIN) as patch:
        _route(patch, "context")
        with_bias = other.run()
    assert not torch.allclose(with_bias, other.run(isolate_modalities=True), atol=1e-5)


def test_audio_does_not_depend_on_the_video():
    case = tiny.build("ltx2")
    other = {"hidden_states": case.args["hidden_states"] + 1}
    with genkit.patch(case.model, PLAIN) as patch:
        _values(patch)
        joint = [_streams(case, **changes)[1] for changes in ({}, other)]
        _route(patch, "a2v")  # audio queries read context alone
        alone = [_streams(case, **changes) for changes in ({}, other)]
    assert not torch.equal(joint[0], joint[1])
    assert torch.equal(alone[0][1], alone[1][1]) and not torch.equal(alone[0][0], alone[1][0])


def test_routes_per_sample(tiny_model):
    """A mixed batch equals its samples one by one."""
    case = tiny_model("ltx2")
    names = [name for name, value in case.args.items() if torch.is_tensor(value)]
    tasks = ["v2a", "t2av"]
    with genkit.patch(case.model, PLAIN) as patch:
        _values(patch)
        _route(patch, tasks)
        mixed = _streams(case)
        for row, task in enumerate(tasks):
            _route(patch, task)
            single = _streams(case, **{name: case.args[name][row : row + 1] for name in names})
            for both, one in zip(mixed, single, strict=True):
                torch.testing.assert_close(both[row : row + 1], one, atol=2e-6, rtol=2e-5)


def test_no_gradient_into_a_given_stream():
    """Only the audio's way into the video is left open, then stopped: no gradient reaches the audio input."""
    case = tiny.build("ltx2")
    case.model.requires_grad_(False)
    with genkit.patch(case.model, PLAIN) as patch:
        grads, outputs = [], []
        for tasks in ("t2av", "a2v", ["t2av", "a2v"]):
            _route(patch, tasks)
            audio = case.args["audio_hidden_states"].clone().requires_grad_()
            video = case.model(**{**case.args, "audio_hidden_states": audio})[0]
            video.square().sum().backward()
            grads.append(audio.grad)
            outputs.append(video.detach())
        assert grads[0].any() and not grads[1].any()
        assert not grads[2][1].any() and grads[2][0].any()
        _route(patch, "t2av")
        audio = case.args["audio_hidden_states"].clone().requires_grad_()
        clean = case.model(**{**case.args, "audio_hidden_states": audio, "audio_timestep": torch.zeros(2)})[0]
        clean.square().sum().backward()
        assert not audio.grad.any()  # a stream at noise level zero is a given one
        own = [name for name, p in patch.weights.named_weights().items() if p.grad is not None and p.grad.any()]
        assert any("audio_to_video" in name and name.endswith("beta") for name in own)


def test_training_lowers_the_loss_and_survives_checkpointing(tmp_path):
    case = tiny.build("ltx2")
    case.model.requires_grad_(False).train()
    target = torch.randn(case.args["hidden_states"].shape, generator=torch.Generator().manual_seed(2))
    reference = case.run()
    with genkit.patch(case.model, genkit.CrossModalContext(tokens=4, beta=0.0)) as patch:
        optimiser = torch.optim.Adam(patch.weights.parameters(), lr=0.1)
        losses = []
        for _ in range(6):
            loss = (case.model(**case.args)[0] - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        grads = []
        for checkpointing in (False, True):
            if checkpointing:
                case.model.enable_gradient_checkpointing()
            _route(patch, ["t2av", "v2a"])
            patch.weights.zero_grad()
            loss = (case.model(**case.args)[1]).square().mean()
            _route(patch, "context")  # set for the next call: recomputation keeps what this one had
            loss.backward()
            grads.append({name: p.grad.clone() for name, p in patch.weights.named_parameters() if p.grad is not None})
        assert grads[0].keys() == grads[1].keys() and len(grads[0]) >= 6
        for name, gradient in grads[0].items():
            torch.testing.assert_close(grads[1][name], gradient, atol=1e-6, rtol=1e-4)
        case.model.disable_gradient_checkpointing()
        _route(patch, "t2av")
        trained = case.run()
        path = patch.weights.save(tmp_path / "context.safetensors")
    assert torch.equal(case.run(), reference)
    with genkit.patch(case.model, genkit.CrossModalContext(tokens=4, beta=0.0, weights=str(path))) as patch:
        assert torch.equal(case.run(), trained)
    with pytest.raises(ArtifactError, match="in the file"):
        genkit.patch(case.model, genkit.CrossModalContext(tokens=5, weights=str(path)))
    assert torch.equal(case.run(), reference)


def test_coverage_that_guidance_needs(tiny_model):
    case = tiny_model("ltx2")
    for options in ({"roles": ROLES[0]}, {"schedule": genkit.Schedule(layers="1:")}):
        with pytest.raises(UsageError, match="every layer"):
            genkit.patch(case.model, PLAIN, **options)
    with pytest.raises(UsageError, match="every step"):
        genkit.patch(case.model, PLAIN, schedule=genkit.Schedule(steps="1:"))
    alone = genkit.CrossModalContext(tokens=2, guidance=False)
    with genkit.patch(case.model, alone, schedule=genkit.Schedule(layers="1:"), roles=ROLES[1]) as patch:
        case.run()
        assert patch.report().ran == 1


@pytest.mark.parametrize("name", [name for name in tiny.FAMILIES if name != "ltx2"])
def test_other_families_are_refused_with_the_reason(tiny_model, name):
    reason = genkit.why_not(tiny_model(name).model, genkit.CrossModalContext())
    assert reason is not None and "audio_to_video" in reason
    with pytest.raises(UnsupportedError, match="fits no attention"):
        genkit.patch(tiny_model(name).model, genkit.CrossModalContext())


def test_pipeline_guidance_uses_the_context():
    """The stock pipeline's modality guidance: per step one call for both halves, one that reads context alone."""
    import tiny_av

    pipe = tiny_av.build_tiny_av()
    scales = {"modality_scale": 3.0, "audio_modality_scale": 3.0}
    plain = tiny_av.run(pipe)
    guided = tiny_av.run(pipe, **scales)
    seen = []
    with genkit.patch(pipe, PLAIN) as patch:
        _values(patch)
        route = ContextRoute.of(patch.cache)
        hook = pipe.transformer.transformer_blocks[0].audio_to_video_attn.register_forward_hook(
            lambda module, args, output: seen.append((route.names, args[0].shape[0]))
        )
        context = tiny_av.run(pipe, **scales)
        hook.remove()
        unguided = tiny_av.run(pipe)
        report = patch.report()
    assert seen == [(("t2av",), 2), (("context",), 1)] * 2
    assert report.steps == 2 and report.ran == report.calls == 4 * (4 + 2)
    results = [plain, guided, context, unguided]
    assert all(not torch.allclose(a, b, atol=1e-5) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(tiny_av.run(pipe, **scales), guided) and torch.equal(tiny_av.run(pipe), plain)


def test_stacks_with_sparse_self_attention_on_a_pipeline():
    """Radial on the video's self-attention, context on both cross-modal directions: one patch or two."""
    import tiny_av

    pipe = tiny_av.build_tiny_av()
    plain = tiny_av.run(pipe)
    parts = [genkit.Radial(block_size=16), genkit.CrossModalContext()]
    with genkit.patch(pipe, parts) as both:
        together = tiny_av.run(pipe)
        methods = {site.role: site.method.split("(")[0] for site in both.report().sites}
        assert not both.report().declined
    assert methods == {"self": "radial", **dict.fromkeys(ROLES, "cross_modal_context")}
    with genkit.patch(pipe, parts[0]) as first, genkit.patch(pipe, parts[1]):
        assert torch.equal(tiny_av.run(pipe), together) and first.report().ran
    assert not torch.allclose(together, plain, atol=1e-5) and torch.equal(tiny_av.run(pipe), plain)


def test_processors_serve_the_same(tiny_model):
    case = tiny_model("ltx2")
    method = genkit.CrossModalContext(window=1)
    with genkit.patch(case.model, method):
        expected = case.run()
    own = dict(case.model.attn_processors)
    case.model.set_attn_processor(genkit.attn_processors(case.model, method))
    assert torch.equal(case.run(), expected)
    case.model.set_attn_processor(own)
