"""The model cards of shipped models; what a run measured is filled in."""

from __future__ import annotations

TOY_VIDEO = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# toy-video

A text-to-video model of a toy world, small enough to ship: one or two coloured shapes move over a plain background.
A stock `WanPipeline`: `AutoencoderKLWan`, `UMT5EncoderModel` with a vocabulary of words, `WanTransformer3DModel`
({parameters:.1f} million parameters), `UniPCMultistepScheduler`; all weights bfloat16. It exists so that attention
methods can be tried, tested and judged on a real video pipeline without a GPU and without a download.

![samples](samples.png)

*One clip per prompt, nothing picked by hand: `python scripts/sample_sheet.py --model toy-video -o samples.png`*

## Use

```python
import genkit

pipe = genkit.load("toy-video")
frames = pipe(
    "a red circle moves right on a blue background",
    num_frames=25, height=128, width=128, num_inference_steps=20, guidance_scale=4.0, max_sequence_length=64,
).frames[0]
```

Prompts: `a [small|big] COLOUR SHAPE MOTION on a BACKGROUND background`, two such objects joined by `and`; the words are
in `genkit.world.vocabulary`, others are unknown to it. Sizes are multiples of 16 pixels; it was trained at 64 to 256
pixels and 1 to 25 frames, 8 frames a second.

## Training

Rendered clips of `genkit.world`, nothing else. Made by

```
python -m torch.distributed.run --standalone --nproc_per_node 2 scripts/train_toy_video.py --folder runs/toy-video
```

({steps} steps of the transformer in {minutes} minutes, runs that went on from each other taken together; the figures
are in `training.json`, the story in `docs/training.md`.) Four colour-shape pairs and a tenth of all combinations were
held out.

## Accuracy and limits

Judged by arithmetic on the pixels, on seen and held-out prompts: `benchmarks/results/toy_video.md`. Outlines of small
and of spinning objects are the weakest part; with two objects attributes are sometimes exchanged.
"""

TOY_AV = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# toy-av

Video and stereo sound of a toy world, made together, small enough to ship: one or two coloured shapes move over a
plain background, and a tone is struck when one bounces, starts or stops, pitched by its colour and panned by its place.
A stock `LTX2Pipeline`: `LTX2VideoTransformer3DModel` ({parameters:.1f} million parameters), `AutoencoderKLLTX2Video`,
`AutoencoderKLLTX2Audio`, `LTX2TextConnectors`, `Gemma3ForConditionalGeneration` with a vocabulary of words, and an
`LTX2Vocoder` that was not trained but filled in by formula; all weights bfloat16.

## Use

```
genkit generate "a green ball bounces twice on a black background" --model toy-av -o ball.mp4
genkit generate "a red circle moves right" --model toy-av --audio tones.wav -o heard.mp4     # a video for a sound
genkit generate "" --model toy-av --video clip.mp4 -o sounding.mp4                           # a sound for a video
```

In Python, give the call the arguments of `genkit.json` too: LTX-2's pipeline switches on guidance by default that a
model of six layers does not have. Prompts: `a [small|big] COLOUR SHAPE MOTION [once|twice|three times] on a BACKGROUND
background`, two such objects joined by `and`. Sizes are multiples of 32 pixels, 8 frames a second.

The sound's spectrogram is no mel one: 28 amplitudes per side, of the multiples of 100 Hz, every 10 ms. It plays tones;
noise and voices are beyond it.

## Training

Rendered clips and sounds of `genkit.world`, nothing else. Made by

```
python -m torch.distributed.run --standalone --nproc_per_node 2 scripts/train_toy_av.py --folder runs/toy-av --threads 1
```

({steps} steps of the transformer in {minutes} minutes, runs that went on from each other taken together; the figures
are in `training.json`, the story in `docs/training.md`.) Four colour-shape pairs and a tenth of all combinations were
held out. `python -m benchmarks toy_av` measures what it reaches.
"""
