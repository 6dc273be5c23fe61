"""Settings of short distillations of tiny models, and whether two of them made the same."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from genkit.training.distill.settings import DistillSettings

#: A window that a tiny clip of four latent frames leaves.
WINDOW = {"chunk": 2, "sink": 1, "recent": 2, "trained": 5}


def tiny_settings(model, prompts, output, **more):
    given = {
        "model": str(model), "prompts": str(prompts), "output": str(output), "height": 32, "width": 32,
        "guidance_scale": 3.0, "rank": 2, "learning_rate": 0.01, "checkpointing_steps": 1, "train_batch_size": 2,
        "seed": 3, **more,
    }  # fmt: skip
    return DistillSettings.from_mappings(("the test", given))


def same_weights(one, other):
    """The weights of two files, which must be the same bit for bit."""
    found, wanted = load_file(one), load_file(other)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    return found
