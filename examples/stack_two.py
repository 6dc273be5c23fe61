"""Two patches on one model: radial windows in the first layers, selected blocks in the rest. Overlaps are refused."""

import torch

import genkit
from genkit.errors import GenkitError

pipe = genkit.load("toy-video")
late = genkit.Schedule(steps="4:", layers="3:")
early = genkit.Schedule(steps="4:", layers=":3")

with genkit.patch(pipe, genkit.Radial(block_size=16), schedule=early) as first:
    with genkit.patch(pipe, genkit.MixtureOfBlock(), schedule=late) as second:
        pipe(
            "a green square moves up on a black background",
            num_frames=25, height=128, width=128, num_inference_steps=20, guidance_scale=4.0, max_sequence_length=64,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    print(first.report())
    print(second.report())
    try:
        genkit.patch(pipe, genkit.Neighborhood(size=(5, 7, 7)), schedule=genkit.Schedule(layers="2:4"))
    except GenkitError as refusal:
        print("refused:", refusal)
