"""LoRA with every trainable method: gradients are those of its definition, also recomputed and compiled."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import tiny
import torch
from gate_methods import Full
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

import genkit
from genkit.attention.mixture_of_block.method import _partition
from genkit.attention.reference.store import References
from genkit.attention.scored import bias_rows
from genkit.families.lookup import family_of

AGENT = genkit.Agent(form="trained", cell=(1, 2, 2), lattice=(2, 2, 2), lines=(2, 2, 2))
REFERENCE = genkit.Reference(form="residual", rank=2)
CONTEXT = genkit.CrossModalContext(tokens=3, window=1.0)
BIAS = genkit.Neighborhood(size=3, bias="table:t=1:h=2:w=1+alibi:learned=true")
BLOCKS = {"temporal": 1, "spatial": (2, 2), "box": (1, 2, 2)}
METHODS = {
    "biased": genkit.Biased(bias="distance:t=0.5:h=0.5:w=0.5", block=8),
    "radial": genkit.Radial(block_size=8, near="decay", sink=False, decay_factor=0.1),
    "learned bias": BIAS,
    "shards": genkit.Shards(block=8, stride=3),
    "shifted_groups": genkit.ShiftedGroups(group=2),
    "neighborhood": genkit.Neighborhood(size=3),
    "sliding_window": genkit.SlidingWindow(base=(2, 2)),
    "mixture_of_block": genkit.MixtureOfBlock(**BLOCKS),
    "mixture_of_block by head": genkit.MixtureOfBlock(**BLOCKS, select="threshold", scope="head"),
    "agent": AGENT,
    "reference": REFERENCE,
    "cross_modal_context": CONTEXT,
}
CELLS = [
    *((name, "wan") for name in METHODS if name != "cross_modal_context"),
    ("radial", "hunyuan_video"), ("shifted_groups", "cogvideox"), ("mixture_of_block", "hunyuan_video"),
    ("neighborhood", "flux"), ("agent", "unet"), ("cross_modal_context", "ltx2"),
]  # fmt: skip


@dataclass(frozen=True)
class Written(Full):
    """A method written out: softmax over the pairs that its definition lets a head see."""

    name = "written"
    method: genkit.Method = None

    def attend(self, q, k, v, site, cache):
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (site.scale or q.shape[-1] ** -0.5)
        if isinstance(self.method, genkit.SlidingWindow):
            logits = logits * self.method.score_factor(site.layout)
        if isinstance(self.method, genkit.Biased):
            every = torch.arange(site.layout.length)
            logits = logits + bias_rows(self.method.bias_spec, site.layout, every, site.heads).to(q)
        seen = self._seen(q.detach(), k.detach(), site)
        if site.key_mask is not None:
            seen = seen & site.key_mask[:, None, None]
        return torch.einsum("bhqk,bkhd->bqhd", logits.masked_fill(~seen, -torch.inf).softmax(-1), v)

    def _seen(self, q, k, site):
        if isinstance(self.method, genkit.ShiftedGroups):
            heads = torch.arange(site.heads) >= site.heads - self.method.moved(site.heads)
            return self.method.masks(site.layout)[heads.long()]
        if isinstance(self.method, genkit.Shards):
            return self.method.masks(site.layout)[(torch.arange(site.heads) + site.layer) % self.method.stride]
        if not isinstance(self.method, genkit.MixtureOfBlock):
            return self.method.mask(site.layout)
        part = _partition(self.method, site.layout.grid, self.method.kind(site.layer))
        start, stop = site.layout.grid_span
        inverse = part.permutation.inverse
        chosen = self.method.select_blocks(*(x[:, start:stop][:, part.permutation.order] for x in (q, k)), part)
        seen = torch.ones(len(q), site.heads, site.layout.length, site.layout.length, dtype=torch.bool)
        seen[:, :, start:stop, start:stop] = chosen[..., part.block_of][:, :, inverse][..., inverse]
        return seen


def inject(model):
    """A LoRA on the family's usual layers, both factors random, all else frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.requires_grad_(False)
        targets = family_of(model).facts.lora_targets
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)


def trainee(name, double=True):
    case = tiny.build(name)
    if name == "ltx2":
        case.args["audio_timestep"] = case.args["timestep"]
    if double:
        case.model.double()
        case.args = {key: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
                     for key, value in case.args.items()}  # fmt: skip
    inject(case.model)
    case.model.train()
    return case


def opened(patch):
    """Weights of the patch that start at zero become noise, so that gradients reach everything."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in patch.weights.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))


def gradients(case, patch=None, run=None):
    """The gradient of every weight that trains: LoRA's, and the patch's own."""
    weights = {name: p for name, p in case.model.named_parameters() if p.requires_grad}
    if patch is not None:
        weights |= patch.weights.named_weights()
        if any(isinstance(method, genkit.Reference) for method in patch.methods):
            picture = case.args["hidden_states"].flip(-1) * 1.5
            References.of(patch.cache).record(patch, case.model, **{**case.args, "hidden_states": picture})
    outputs = (case.model if run is None else run)(**case.args)
    loss = sum((output * torch.cos(torch.arange(output.numel())).view(output.shape)).mean() for output in outputs)
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: grad for name, grad in zip(weights, found, strict=True) if grad is not None}


def agree(found, right, relative):
    assert found.keys() == right.keys() and found
    largest = max(value.abs().max() for value in right.values())
    for name, value in right.items():
        assert (found[name] - value).abs().max() <= relative * largest, name


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_gradients_of_lora_are_those_of_the_definition(name, family):
    method, case = METHODS[name], trainee(family)
    with genkit.patch(case.model, Full()):
        dense = gradients(case)
    with genkit.patch(case.model, method) as patch:
        opened(patch)
        found = gradients(case, patch)
        assert patch.report().ran
        own = patch.weights.named_weights().keys()
        state = {key: value.clone() for key, value in patch.weights.state_dict().items()}
    written = method in (AGENT, REFERENCE, CONTEXT, BIAS)  # theirs is the plain backend of the operators
    with (
        genkit.patch(case.model, method, backend="reference")
        if written
        else genkit.patch(case.model, Written(method=method), roles=("self", "joint")) as patch
    ):
        if written:
            patch.weights.load_state_dict(state)
        right = gradients(case, patch)
    agree(found, right, 1e-11)
    idle = {key for key in own if key.startswith("reference/blocks/2/attn1.changes.q")}  # the recording pass ends there
    assert own - idle <= found.keys()
    largest = max(value.abs().max() for value in dense.values())
    assert max((found[key] - value).abs().max() for key, value in dense.items()) > 1e-6 * largest


@pytest.mark.parametrize(("name", "family"), [cell for cell in CELLS if cell[0] != "reference"])
def test_recomputation_gives_the_same_gradients(name, family):
    """Also of methods that choose by the data: the recomputed pass must choose alike."""
    method, case = METHODS[name], trainee(family, double=False)
    with genkit.patch(case.model, method) as patch:
        opened(patch)
        plain = gradients(case, patch)
        once = patch.report(clear=True).ran
        case.model.enable_gradient_checkpointing()
        again = gradients(case, patch)
        assert patch.report().ran > once
    assert plain.keys() == again.keys() and all(torch.equal(again[key], value) for key, value in plain.items())


@pytest.mark.parametrize("name", ["shifted_groups", "mixture_of_block"])
def test_compiled_models_have_the_same_gradients(name):
    torch._dynamo.reset()
    case = trainee("wan", double=False)
    case.model.blocks = case.model.blocks[:1]
    with genkit.patch(case.model, METHODS[name]) as patch:
        plain = gradients(case, patch)
        run = torch.compile(case.model, backend="aot_eager", fullgraph=True)
        compiled = gradients(case, patch, run)
        assert patch.report().ran == 2
    agree(compiled, plain, 1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sites_are_found_whatever_peft_wraps(family):
    """Before and after the adapters come, as a PeftModel too: the same sites, the same output, the same state."""
    case = tiny.build(family)
    with genkit.patch(case.model, Full()) as patch:
        bare = patch.sites
    inject(case.model)
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    right = case.run()
    with genkit.patch(case.model, Full()) as patch:
        assert patch.sites == bare
        torch.testing.assert_close(case.run(), right, atol=5e-5, rtol=5e-5)
        assert patch.report().ran == case.calls and case.model.state_dict().keys() == state.keys()
    assert torch.equal(case.run(), right)
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())

    wrapped = tiny.build(family)
    plain = wrapped.run()
    wrapped.model = get_peft_model(
        wrapped.model, LoraConfig(r=2, target_modules=family_of(case.model).facts.lora_targets)
    )
    with genkit.patch(wrapped.model, Full()) as patch:
        assert patch.sites == bare
        torch.testing.assert_close(wrapped.run(), plain, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("method", [AGENT, REFERENCE, CONTEXT], ids=lambda method: method.name)
def test_adapters_may_come_and_go_under_a_patch(method):
    """What a method follows of a layer stays followed when peft wraps the layer, and when it unwraps it again."""
    family = "ltx2" if method is CONTEXT else "wan"
    case = trainee(family)
    adapters = {key: value.clone() for key, value in case.model.state_dict().items() if "lora_" in key}
    state = {}

    def outputs(patch):
        if not state:
            opened(patch)
            state.update({key: value.clone() for key, value in patch.weights.state_dict().items()})
        patch.weights.load_state_dict(state)
        return gradients(case, patch)

    with genkit.patch(case.model, method) as patch:
        before = outputs(patch)
        case.model.unload_lora()
        assert not any(isinstance(module, LoraLayer) for module in case.model.modules())
        bare = outputs(patch)
    with genkit.patch(case.model, method) as patch:
        agree(outputs(patch), bare, 1e-12)
        inject(case.model)
        case.model.load_state_dict(adapters, strict=False)
        agree(outputs(patch), before, 1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.model.modules())


def test_a_patch_may_be_removed_and_put_on_again_between_steps():
    case = trainee("wan")
    for patched in (False, True):
        with genkit.patch(case.model, METHODS["radial"]) if patched else nullcontext():
            found = gradients(case)
        with genkit.patch(case.model, METHODS["radial"]):
            right = gradients(case)
        assert all(torch.equal(found[key], value) for key, value in right.items()) == patched
