"""One sparse method on one pipeline: what it computed, and the model bit for bit as before."""

import torch

import genkit
from genkit.media import write_media

pipe = genkit.load("toy-video")
request = dict(
    prompt="a red circle moves right on a blue background",
    num_frames=25, height=128, width=128, num_inference_steps=20, guidance_scale=4.0, max_sequence_length=64,
)  # fmt: skip

with genkit.patch(pipe, genkit.Neighborhood(size=(5, 7, 7)), schedule=genkit.Schedule(steps="4:")) as patch:
    sparse = pipe(**request, generator=torch.Generator().manual_seed(0)).frames[0]
    print(patch.describe())  # per layer: method, grid, densities
print(patch.report())  # what really ran

dense = pipe(**request, generator=torch.Generator().manual_seed(0)).frames[0]
print(f"mean difference to dense attention: {abs(sparse - dense).mean():.4f} of 1")
write_media("patch_one.mp4", (sparse * 255).round().astype("uint8"), fps=8, force=True)
