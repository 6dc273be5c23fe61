"""Settings of a method from a recipe: a shipped one by name, and one of your own from a file."""

from pathlib import Path

import torch

import genkit

pipe = genkit.load("toy-video")
request = dict(
    prompt="a red circle moves right on a blue background",
    num_frames=25, height=128, width=128, num_inference_steps=20, guidance_scale=4.0, max_sequence_length=64,
)  # fmt: skip

with genkit.patch(pipe, genkit.recipe("toy-video-neighborhood")) as patch:
    pipe(**request, generator=torch.Generator().manual_seed(0))
print(patch.report())

Path("mine.yaml").write_text(
    """
description: Narrower windows, from the sixth step on
match: {model: WanTransformer3DModel}
parts:
  - attention: neighborhood
    attention_args: {size: [3, 5, 5]}
    schedule: {steps: "5:"}
"""
)
with genkit.patch(pipe, genkit.recipe("mine.yaml")) as patch:
    pipe(**request, generator=torch.Generator().manual_seed(0))
print(patch.report())
