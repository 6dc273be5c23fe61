"""Gradients through the gate: LoRA, activation checkpointing, and both together."""

from __future__ import annotations

import pytest
import tiny
import torch
from gate_methods import Full, Scaled

import genkit
from genkit.families.lookup import family_of

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def _with_lora(name: str) -> tiny.Tiny:
    from peft import LoraConfig

    case = tiny.build(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        case.model.requires_grad_(False)
        targets = family_of(case.model).facts.lora_targets
        case.model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    case.model.train()
    return case


def _gradients(case: tiny.Tiny) -> dict[str, torch.Tensor]:
    case.model.zero_grad(set_to_none=True)
    case.forward().square().mean().backward()
    return {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_checkpointing_with_lora(name):
    """Gradients of LoRA weights: unpatched, patched with full attention, and with recomputation, are the same."""
    case = _with_lora(name)
    expected = _gradients(case)
    assert len(expected) > 4 and all("lora" in key for key in expected)
    with genkit.patch(case.model, Full()) as handle:
        patched = _gradients(case)
        assert handle.report(clear=True).ran == case.calls
        case.model.enable_gradient_checkpointing()
        recomputed = _gradients(case)
        # Each call runs again in the backward pass, from the layout the patch kept.
        assert handle.report().ran > case.calls
    for key, gradient in expected.items():
        torch.testing.assert_close(patched[key], gradient, atol=2e-5, rtol=2e-4, msg=key)
        torch.testing.assert_close(recomputed[key], gradient, atol=2e-5, rtol=2e-4, msg=key)


def test_lora_added_after_patching():
    from peft import LoraConfig

    case = tiny.build("wan")
    with genkit.patch(case.model, Scaled()) as handle:
        case.model.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
        case.model.train()
        gradients = _gradients(case)
        assert handle.report().ran == case.calls
    assert sum("lora" in key for key in gradients) == 3 * 2 * 4 * 2


def test_sparse_training_with_checkpointing():
    """A real method: recomputed gradients equal the plain ones."""
    case = _with_lora("wan")
    with genkit.patch(case.model, genkit.Neighborhood(size=3), backend="reference"):
        plain = _gradients(case)
        case.model.enable_gradient_checkpointing()
        recomputed = _gradients(case)
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, atol=1e-6, rtol=1e-4)


def test_peft_model_is_looked_through():
    from peft import LoraConfig, get_peft_model

    case = tiny.build("wan")
    reference = case.run()
    case.model = get_peft_model(case.model, LoraConfig(r=2, target_modules=TARGETS))
    with genkit.patch(case.model, Full()) as handle:
        torch.testing.assert_close(case.run(), reference, atol=2e-5, rtol=2e-5)
        assert handle.report().ran == case.calls and handle.sites[0] == "blocks.0.attn1"
