"""A method with weights of its own, trained so that the patched model answers what the dense one does.

A few steps on random latents, to show the interface; `scripts/train_patch.py agent` is the real training.
"""

from copy import deepcopy

import torch

import genkit

STEPS = 10

torch.manual_seed(0)
pipe = genkit.load("toy-video", dtype="float32", device="cpu")
model = pipe.transformer.requires_grad_(False)
dense = deepcopy(model)  # made before the patch: stays as it is

handle = genkit.patch(model, genkit.Agent(form="trained"), schedule=genkit.Schedule(layers="2:-2"))
optimizer = torch.optim.AdamW(handle.weights.parameters(), lr=1e-3)
with torch.no_grad():
    text, _ = pipe.encode_prompt("a red circle moves right", do_classifier_free_guidance=False, max_sequence_length=64)

for step in range(STEPS):
    latents = torch.randn(2, model.config.in_channels, 3, 16, 16)
    inputs = dict(
        hidden_states=latents, timestep=torch.randint(1, 1000, (2,)), encoder_hidden_states=text.repeat(2, 1, 1)
    )
    with torch.no_grad():
        wanted = dense(**inputs).sample
    loss = (model(**inputs).sample - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.5f}")

handle.weights.save("agent.safetensors")
handle.remove()

again = genkit.patch(model, genkit.Agent(form="trained"), schedule=genkit.Schedule(layers="2:-2"))
again.weights.load("agent.safetensors")
again.remove()
