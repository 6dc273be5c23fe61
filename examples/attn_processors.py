"""The same gate as standard attention processors: set them, use the model, set the old ones again."""

import torch

import genkit

pipe = genkit.load("toy-image")
before = pipe.unet.attn_processors
pipe.unet.set_attn_processor(genkit.attn_processors(pipe.unet, genkit.Neighborhood(size=(5, 5))))
picture = pipe(
    "a striped blue square left of a small red circle on a white background",
    height=128, width=128, num_inference_steps=20, guidance_scale=4.0, eta=0.95,
    generator=torch.Generator().manual_seed(0),
).images[0]  # fmt: skip
picture.save("attn_processors.png")
pipe.unet.set_attn_processor(before)
