"""Shared cross-attention on tiny models of the real classes: zero at the start, the formula, saved, removed."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch

import genkit
from genkit.attention.method import Method
from genkit.attention.registry import trained
from genkit.attention.shared_cross_attention import SharedCrossAttention
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.patching import interception
from genkit.patching.patched_layer import PatchedLayer

sys.path.append(str(Path(__file__).parents[1] / "families"))

SCA = SharedCrossAttention()
JOINT = [name for name in tiny.FAMILIES if "joint" in tiny.build(name).roles]


def _open(patch, scale=0.5):
    """Trained-looking weights: whatever starts at zero becomes noise."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in patch.weights.parameters():
            if not parameter.any():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def _motif(image=True):
    import zoo

    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = zoo.builders()["motif_video" if image else "motif_video_text"][1]()
    for block in (*case.model.transformer_blocks, *case.model.single_transformer_blocks):
        block.cross_attn = None  # its own cross-attention is switched on in the zoo
    case.model.eval()
    return case


@pytest.mark.parametrize("name", JOINT)
def test_on_every_kind_of_joint_attention(tiny_model, name):
    """Untrained, the model is itself bit for bit; trained, another; removed, itself again."""
    case = tiny_model(name)
    reference, state = case.run(), set(case.model.state_dict())
    with genkit.patch(case.model, SCA) as patch:
        assert torch.equal(case.run(), reference)
        report = patch.report()
        assert report.ran and not report.declined
        _open(patch)
        out = case.run()
        assert torch.isfinite(out).all() and not torch.allclose(out, reference, atol=1e-5)
    assert torch.equal(case.run(), reference) and set(case.model.state_dict()) == state


class _Formula:
    """Motif-Video's attention with the term of the card written out, in the place of the model's processor."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        n = hidden_states.shape[1]

        def turn(x):
            cos, sin = (each[None, :, None].to(x) for each in image_rotary_emb)
            pairs = x.unflatten(-1, (-1, 2))
            return x * cos + torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2) * sin

        def made(x, q, k, v, norm_q, norm_k):
            q, k, v = (part(x).unflatten(2, (attn.heads, -1)) for part in (q, k, v))
            return norm_q(q), norm_k(k), v

        own = (attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
        video = made(hidden_states, *own)
        context = made(encoder_hidden_states, *(own if attn.add_q_proj is None else added))
        q, k = (torch.cat([turn(a), b], 1) for a, b in zip(video[:2], context[:2], strict=True))
        v = torch.cat([video[2], context[2]], 1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        hidden = None if attention_mask is None else ~attention_mask
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        if self.weights is not None:
            text = slice(-6, None)
            x = out[:, :n].flatten(2) @ self.weights.query.T
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], self.weights.norm, self.weights.shift, 1e-6)
            again = turn(attn.norm_q(x.unflatten(2, (attn.heads, -1))))
            scores = torch.einsum("bqhd,bkhd->bhqk", again, context[1][:, text]) * q.shape[-1] ** -0.5
            if hidden is not None:
                scores = scores.masked_fill(hidden[..., text], float("-inf"))
            read = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), context[2][:, text]).flatten(2)
            out = torch.cat([out[:, :n] + (read @ self.weights.out.T).unflatten(2, (attn.heads, -1)), out[:, n:]], 1)
        out = out.flatten(2)
        first, rest = out[:, :n], out[:, n:]
        first = first if attn.to_out is None else attn.to_out[0](first)
        return first, rest if attn.to_add_out is None else attn.to_add_out(rest)


@pytest.mark.parametrize("image", [True, False])
def test_motif_video_is_the_formula_in_values_and_gradients(image):
    """Dual and single blocks, image tokens before padded text, decoder blocks without the term: against the card's
    formula in the processors' place, through the whole model and to the projections that are shared."""
    case = _motif(image)
    model = case.model.double()
    args = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case.args.items()
    } | {"return_dict": False}
    model.time_text_embed.timestep_embedder.register_forward_pre_hook(lambda module, given: (given[0].double(),))
    shared = [
        model.transformer_blocks[0].attn.add_k_proj.weight,
        model.transformer_blocks[0].attn.norm_q.weight,
        model.single_transformer_blocks[0].attn.to_v.weight,
        model.x_embedder.proj.weight,
    ]
    with genkit.patch(model, SCA) as patch:
        _open(patch)
        layers = {name: patch.weights.at(SCA.name, name) for name in patch.sites if patch.weights.has(SCA.name, name)}
        assert len(layers) == (2 if image else 3)
        own = [parameter for layer in layers.values() for parameter in layer.parameters()]
        out = model(**args)[0]
        found = torch.autograd.grad(out.square().sum(), [*shared, *own])
    for path, module in model.named_modules():
        if path.endswith(".attn"):
            module.set_processor(_Formula(layers.get(path)))
    right = model(**args)[0]
    torch.testing.assert_close(out, right, atol=1e-7, rtol=1e-5)  # the model turns in float32
    for one, other in zip(found, torch.autograd.grad(right.square().sum(), [*shared, *own]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert one.any()


def test_decoder_blocks_have_no_text_to_ask_and_get_no_weights():
    case = _motif()
    with genkit.patch(case.model, SCA) as patch:
        assert torch.equal(case.run(), case.reference)
        assert "single_transformer_blocks.1.attn" in patch.sites
        assert not patch.weights.has(SCA.name, "single_transformer_blocks.1.attn")
        assert "sequence has none" in next(iter(patch.report().declined))
        assert patch.weights.count() == 2 * (2 * 24**2 + 2 * 24)


def test_padded_text_changes_nothing():
    case = _motif()
    with genkit.patch(case.model, SCA) as patch:
        _open(patch)
        out = case.run()
        text = case.args["encoder_hidden_states"].clone()
        padded = ~case.args["encoder_attention_mask"].bool()
        assert padded.any()
        text[padded] += 3.0
        torch.testing.assert_close(case.run(encoder_hidden_states=text), out, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(case.run(encoder_hidden_states=text + 1), out, atol=1e-4)


def test_saved_and_read_again(tiny_model, tmp_path):
    case = tiny_model("hunyuan_video")
    with genkit.patch(case.model, SCA) as patch:
        _open(patch)
        expected = case.run()
        file = patch.weights.save(tmp_path / "shared.safetensors")
    with genkit.patch(case.model, trained("shared_cross_attention", file)):
        assert torch.equal(case.run(), expected)
    with genkit.patch(case.model, SharedCrossAttention(weights=str(file), strength=0.0)) as patch:
        assert torch.equal(case.run(), case.run()) and "strength is 0" in next(iter(patch.report().declined))
    with pytest.raises(ArtifactError, match="does not fit this patch"):
        genkit.patch(case.model, SharedCrossAttention(weights=str(file)), schedule=genkit.Schedule(layers="0"))
    with pytest.raises(ArtifactError, match="does not fit this patch"):
        genkit.patch(tiny_model("flux").model, SharedCrossAttention(weights=str(file)))


def test_beside_a_sparse_method_it_reads_what_that_gave(tiny_model):
    case = tiny_model("hunyuan_video")
    near = genkit.Neighborhood(size=3)
    with genkit.patch(case.model, near):
        sparse = case.run()
    with genkit.patch(case.model, [near, SCA]) as patch:
        assert torch.equal(case.run(), sparse)
        _open(patch)
        both = case.run()
        file = {name: value.clone() for name, value in patch.weights.named_weights().items()}
    with genkit.patch(case.model, SCA) as patch, torch.no_grad():
        for name, value in patch.weights.named_weights().items():
            value.copy_(file[name])
        assert not torch.allclose(case.run(), both, atol=1e-5) and not torch.allclose(both, sparse, atol=1e-5)


def test_the_other_door_gives_the_same(tiny_model):
    case = tiny_model("hunyuan_video")
    with genkit.patch(case.model, SCA) as patch:
        _open(patch)
        expected = case.run()
        kept = {name: value.clone() for name, value in patch.weights.named_weights().items()}
    before = dict(case.model.attn_processors)
    case.model.set_attn_processor(genkit.attn_processors(case.model, SCA))
    wrapped = [processor for processor in case.model.attn_processors.values() if hasattr(processor, "handle")]
    with torch.no_grad():
        for name, value in wrapped[0].handle.weights.named_weights().items():
            value.copy_(kept[name])
    assert torch.equal(case.run(), expected)
    del wrapped, value
    case.model.set_attn_processor(before)
    gc.collect()
    assert not interception.INTERCEPTION.installed
    assert not any(module._forward_pre_hooks for module in case.model.modules())


def test_refused_where_there_is_no_joint_attention(tiny_model):
    with pytest.raises(UnsupportedError, match="it works on joint attention, Wan has self, cross"):
        genkit.patch(tiny_model("wan").model, SCA)
    with genkit.patch(tiny_model("flux").model, SCA):
        with pytest.raises(UsageError, match="already has shared_cross_attention"):
            genkit.patch(tiny_model("flux").model, SharedCrossAttention(seed=2))


@pytest.mark.parametrize("name", ["hunyuan_video", "sd3"])
def test_compiled_it_gives_the_same(tiny_model, name):
    """Positions are read between two graphs."""
    case = tiny_model(name)
    with genkit.patch(case.model, SCA) as patch:
        _open(patch)
        expected = case.run()
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(case.model, backend="eager")
            for _ in range(2):
                out = compiled(**case.args)[0]
                torch.testing.assert_close(out.flatten(), expected.flatten()[: out.numel()], atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@dataclass(frozen=True)
class Ones(Method):
    """Adds one everywhere."""

    name = "ones"
    roles = ("joint",)
    adds = True

    def attend(self, q, k, v, site, cache):
        return torch.ones_like(q)


def test_nothing_is_added_to_text_that_sees_by_a_mask_of_its_own(monkeypatch):
    """Padded text of HunyuanVideo 1.5 asks by another mask than the grid: its rows stay the model's."""
    import zoo

    own, served = [], []
    before, serve = PatchedLayer._own, PatchedLayer.serve
    monkeypatch.setattr(PatchedLayer, "_own", lambda *given: own.append(before(*given)) or own[-1])
    monkeypatch.setattr(PatchedLayer, "serve", lambda *given: served.append(serve(*given)) or served[-1])
    case = zoo.builders()["hunyuan15"][1]()
    with genkit.patch(case.model, Ones()):
        case.run()
    assert len(own) == len(served) > 0
    for plain, out in zip(own, served, strict=True):
        torch.testing.assert_close(out[:, :60], plain[:, :60] + 1)
        assert torch.equal(out[:, 60:], plain[:, 60:])
