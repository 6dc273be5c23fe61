"""Mixtures of LoRAs: numbers of the definition, and what peft gives where gates are the same everywhere."""

from __future__ import annotations

import pytest
import tiny
import torch

from genkit.errors import UnsupportedError, UsageError
from genkit.families.lookup import family_of
from genkit.lora.mixture import Expert, Masks, Mixture, Router, Shares
from genkit.lora.mixture.files import widths_of
from genkit.lora.mixture.gates import balance, entropy, routing_loss
from genkit.lora.mixture.mix import _Held, groups_of
from genkit.lora.pair import Pair

ALL = torch.ones(2, dtype=torch.bool)


def targets(model):
    import re

    pattern = family_of(model).facts.lora_targets
    return [path for path, module in model.named_modules() if re.fullmatch(pattern, path)]


def expert(model, seed, rank=2, paths=None, alpha=None):
    draw = torch.Generator().manual_seed(seed)
    pairs = {}
    for path in paths or targets(model):
        layer = model.get_submodule(path)
        down, up = (
            torch.randn(shape, generator=draw) * 0.2
            for shape in ((rank, layer.in_features), (layer.out_features, rank))
        )
        pairs[path] = Pair(down, up, alpha=alpha)
    return Expert(f"lora{seed}", pairs)


def with_peft(case, experts, weights):
    """The output with peft's adapters at the given weights."""
    from peft import LoraConfig
    from peft.utils import set_peft_model_state_dict

    names = [each.name for each in experts]
    for each in experts:
        config = LoraConfig(r=each.rank, lora_alpha=each.rank, target_modules=list(each.pairs))
        case.model.add_adapter(config, each.name)
        state = {}
        for path, pair in each.pairs.items():
            state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = pair.down, pair.up * pair.scale
        set_peft_model_state_dict(case.model, state, each.name)
    case.model.set_adapters(names, weights)
    found = case.run()
    case.model.unload_lora()
    return found


def double(case):
    case.model.double()
    case.args = {key: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
                 for key, value in case.args.items()}  # fmt: skip
    return case


def test_worked_numbers_of_the_choice():
    chance = torch.tensor([2.0, 1, 0, -1], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(
        chance, torch.tensor([0.643914, 0.236883, 0.087144, 0.032059]).double(), atol=5e-7, rtol=0
    )
    gates = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
    assert entropy(gates).item() == pytest.approx(0.825850, abs=5e-7)
    assert balance(gates).item() == pytest.approx(0.35, abs=1e-9)
    assert routing_loss(gates, 1.0, 0.1).item() == pytest.approx(0.432585, abs=5e-7)
    assert routing_loss(gates, 1.0, -0.1).item() == pytest.approx(0.267415, abs=5e-7)  # the printed sign
    assert balance(torch.eye(3)[[0, 0, 0]]).item() == pytest.approx(1.0)


def test_the_entropy_term_sharpens():
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert entropy(logits.softmax(-1)).item() == pytest.approx(0.582203, abs=5e-7)
    (slope,) = torch.autograd.grad(routing_loss(logits.softmax(-1), 0.0, 1.0), logits)
    assert entropy((logits - slope).softmax(-1)).item() == pytest.approx(0.498865, abs=5e-7)
    assert entropy((logits + slope).softmax(-1)).item() == pytest.approx(0.649160, abs=5e-7)


@pytest.mark.parametrize("name", ["wan", "flux", "unet", "ltx2"])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.2)])
def test_equal_gates_everywhere_are_set_adapters(name, weights):
    case = double(tiny.build(name))
    plain = case.run()
    experts = [expert(case.model, 1, alpha=4.0), expert(case.model, 2, rank=3)]
    right = with_peft(case, experts, list(weights))
    mixture = Mixture(case.model, experts, Shares(weights))
    torch.testing.assert_close(case.run(), right, atol=1e-11, rtol=1e-10)
    assert not torch.allclose(right, plain, atol=1e-3)
    mixture.remove()
    assert torch.equal(case.run(), plain)


def test_equal_loras_with_any_gates_that_sum_to_one_are_one_of_them():
    case = double(tiny.build("wan"))
    one = expert(case.model, 1)
    mixture = Mixture(case.model, [one], Shares([1.0]))
    right = case.run()
    mixture.remove()
    router = Router(widths_of(case.model, [one] * 3), 3, none=False, hard=False).double()
    for value in router.parameters():
        torch.nn.init.normal_(value)
    mixture = Mixture(case.model, [one] * 3, router)
    torch.testing.assert_close(case.run(), right, atol=1e-11, rtol=1e-10)
    mixture.remove()


def test_a_router_begins_even_or_with_none():
    x = torch.randn(2, 5, 8)
    even = Router({"a": 8}, 2, none=False)
    assert torch.equal(even.probabilities("a", x, ALL), torch.full((2, 5, 2), 0.5))
    fresh = Router({"a": 8}, 2)
    assert not fresh("a", "a.to_q", x, ALL).any()
    chance = fresh.probabilities("a", x, ALL)[0, 0]
    torch.testing.assert_close(chance, torch.tensor([0.0, 0.0, 1.0]).softmax(-1))
    with pytest.raises(UsageError, match="number of LoRAs"):
        Router({"a": 8}, 1, none=False)


def test_choices_are_one_hot_and_gradients_are_those_of_the_softmax():
    router = Router({"a": 8}, 2).double()
    torch.nn.init.normal_(router.tables["a/weight"])
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    weight = torch.randn(3, 7, 2, dtype=torch.float64)
    gates = router("a", "a.to_q", x, ALL)
    chance = router.probabilities("a", x, ALL)
    assert torch.equal(gates.detach(), torch.nn.functional.one_hot(chance.argmax(-1), 3)[..., :2].double())
    found = torch.autograd.grad((gates * weight).sum(), router.tables["a/weight"])
    right = torch.autograd.grad((chance[..., :2] * weight).sum(), router.tables["a/weight"])
    torch.testing.assert_close(found, right)


def test_a_lora_without_the_layer_is_never_chosen():
    router = Router({"a": 8}, 2, none=False)
    torch.nn.init.normal_(router.tables["a/weight"])
    gates = router("a", "a.to_q", torch.randn(1, 50, 8), torch.tensor([False, True]))
    assert torch.equal(gates, torch.tensor([0.0, 1.0]).expand(1, 50, 2))


def test_soft_mixing_shrinks():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(400, 400, generator=draw) for _ in range(2))
    assert (0.5 * (one + other)).norm() / one.norm() == pytest.approx(0.5**0.5, abs=0.02)


def test_inputs_are_shared_where_layers_read_the_same():
    model = tiny.build("wan").model
    groups = groups_of(model, [expert(model, 1)])
    assert {groups[f"blocks.0.attn1.to_{x}"] for x in "qkv"} == {"blocks.0.attn1.input"}
    assert groups["blocks.0.attn2.to_q"] == "blocks.0.attn2.queries"
    assert groups["blocks.0.attn2.to_k"] == groups["blocks.0.attn2.to_v"] == "blocks.0.attn2.keys"
    assert groups["blocks.0.attn1.to_out.0"] == "blocks.0.attn1.to_out.0"


def test_masks_keep_a_lora_to_its_region():
    """The first layer's queries change inside of the mask alone; with whole masks it is the plain sum."""
    case = double(tiny.build("wan"))
    paths = ["blocks.0.attn1.to_q"]
    seen = []
    case.model.blocks[0].attn1.norm_q.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    case.run()
    left = torch.zeros(4, 5)
    left[:, :2] = 1
    first, second = (expert(case.model, seed, paths=paths) for seed in (1, 2))
    for experts, masks in (([first], [left]), ([first, second], [left, 1 - left]), ([second], [1 - left])):
        mixture = Mixture(case.model, experts, Masks(masks))
        case.run()
        mixture.remove()
    alone, both, other = (x - seen[0] for x in seen[1:])
    assert torch.equal(alone.abs().sum(-1).view(3, 4, 5) > 0, left.bool().expand(3, 4, 5))
    torch.testing.assert_close(both, alone + other)


def test_masks_may_leave_keys_and_values_alone():
    gates = Masks([torch.zeros(2, 2)], keys=False)
    from genkit.layout import TokenLayout

    gates.begin([TokenLayout.of_grid(1, 2, 2, text=3)])
    x = torch.zeros(1, 7, 8)
    assert gates("a", "a.to_k", x, ALL[:1]).tolist() == [1.0]
    assert gates("a", "a.to_q", x, ALL[:1])[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]  # text has no place
    assert gates("a", "a.to_q", torch.zeros(1, 4, 8), ALL[:1])[:, 0].tolist() == [0, 0, 0, 0]
    with pytest.raises(UsageError, match="mask"):
        Masks([torch.zeros(2)])


def test_both_halves_of_guidance_take_the_prompts_choice():
    held, time = _Held(), torch.tensor([500.0])
    x = torch.arange(4.0).view(4, 1, 1)
    held.begin(time, together=True)
    assert held.shares("a", x, lambda x: x)[:, 0, 0].tolist() == [2, 3, 2, 3]
    held.begin(torch.tensor([400.0]), together=False)
    assert held.shares("a", x[:2], lambda x: x)[:, 0, 0].tolist() == [0, 1]
    held.begin(torch.tensor([400.0]), together=False)  # the other half of the same step
    assert held.shares("a", x[2:], lambda x: x)[:, 0, 0].tolist() == [0, 1]
    held.begin(torch.tensor([300.0]), together=False)
    assert held.shares("a", x[2:], lambda x: x)[:, 0, 0].tolist() == [2, 3]
    held.begin(None, together=True)
    assert held.shares("a", x, lambda x: x)[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_loras_that_cannot_be_mixed_are_refused():
    model = tiny.build("wan").model
    good = expert(model, 1)
    path = next(iter(good.pairs))
    for pair, words in (
        (Pair(good.pairs[path].down, good.pairs[path].up, magnitude=torch.ones(24)), "magnitudes"),
        (Pair(good.pairs[path].down, good.pairs[path].up, bias=torch.ones(24)), "a bias"),
        (Pair(torch.zeros(2, 3, 1, 1), good.pairs[path].up), "only linear layers"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            Mixture(model, [Expert("x", {path: pair})], Shares([1]))
    with pytest.raises(UsageError, match="no layer"):
        Mixture(model, [Expert("x", {"blocks.9.to_q": good.pairs[path]})], Shares([1]))
    with pytest.raises(UsageError, match="at least one"):
        Mixture(model, [], Shares([]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
