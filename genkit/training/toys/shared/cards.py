"""The model cards of shipped models; what a run measured is filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

It can be given its first frame, its last one, both, or how a clip begins: `genkit generate PROMPT --image FILE
--last-image FILE`, in Python `genkit.WanGivenFramesPipeline.from_pipe(pipe)`. Stock Diffusers takes a first frame with
`WanImageToVideoPipeline(**pipe.components, expand_timesteps=True)`.

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

![samples](samples.png)

*One clip per prompt with the waveforms of both sides, nothing picked by hand; green marks what is seen to happen, red
what is heard: `python scripts/sample_sheet.py --model toy-av -o samples.png`*

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
held out.

## Accuracy and limits

Judged by arithmetic on the pixels and the waveform: `benchmarks/results/toy_av.md`. Colours, background, count and
pitch are nearly always right; four of five visible events are heard, three of five sounds have a visible event. These
are early weights: most outlines are lumpy, four motions in ten are not clearly what was asked, and two objects rarely
come out.
"""

_PICTURES = """
Prompts: `a [small|big] [striped|dotted] COLOUR SHAPE`, one to three of them joined by `and` or by a place (`left of`,
`right of`, `above`, `below`), a single one with a third of the canvas (`at the top left`, `in the middle`), then `on a
BACKGROUND background`; the words are in `genkit.world.vocabulary` and `genkit.world.picture_caption`. Other words fall
apart into pieces and mean little. Trained at 64 to 192 pixels, mostly 128.

## Training

Rendered pictures of `genkit.world`, nothing else. Made by

```
python -m torch.distributed.run --standalone --nproc_per_node 2 \\
    scripts/train_{script}.py --folder runs/{name} --threads 1{more}
```

({steps} steps of the {network} in {minutes} minutes, runs that went on from each other taken together; the figures
are in `training.json`, the story in `docs/training.md`.) Four colour-shape pairs, a tenth of all combinations of an
object's attributes and a tenth of all relations were held out.

## Accuracy and limits

Judged by arithmetic on the pixels, on seen and held-out prompts: `benchmarks/results/{script}.md`.
"""

TOY_IMAGE = (
    """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# toy-image

A text-to-image model of a toy world, small enough to ship: one to three plain, striped or dotted shapes on a plain
background. A stock `StableDiffusionPipeline`: `AutoencoderKL`, `CLIPTextModel` with a vocabulary of words,
`UNet2DConditionModel` ({parameters:.1f} million parameters) that predicts the velocity, `DDIMScheduler`; all weights
bfloat16. It exists so that attention and editing methods for Stable Diffusion can be tried, tested and judged without a
GPU and without a download.

![samples](samples.png)

*Five pictures per prompt from five seeds, nothing picked by hand:
`python scripts/sample_sheet.py --model toy-image -o samples.png`*

## Use

```
genkit generate "a striped blue square left of a small red circle" --model toy-image -o picture.png
```

In Python give the call `eta=0.95` and `guidance_scale=4`, as `genkit.json` does for the command: without fresh noise in
every step more objects are misplaced. `LCMScheduler.from_config(pipe.scheduler.config)` samples in 8 steps, 4 are few;
`StableDiffusionInpaintPipeline(**pipe.components)` repaints a part.
"""
    + _PICTURES
)

TOY_DIT = (
    """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# toy-dit

A text-to-image model of a toy world with joint attention, small enough to ship: one to three plain, striped or dotted
shapes on a plain background. A stock `FluxPipeline`: `AutoencoderKL`, T5 and CLIP text encoders with a vocabulary of
words, `FluxTransformer2DModel` ({parameters:.1f} million parameters), `FlowMatchEulerDiscreteScheduler`; all weights
bfloat16. It exists so that attention and editing methods for Flux can be tried, tested and judged without a GPU and
without a download.

![samples](samples.png)

*Five pictures per prompt from five seeds, nothing picked by hand:
`python scripts/sample_sheet.py --model toy-dit -o samples.png`*

## Use

```
genkit generate "a striped yellow square on a purple background" --model toy-dit -o picture.png
```

It is not distilled: guidance is `true_cfg_scale` against the empty prompt, 2 as `genkit.json` says. The scheduler draws
fresh noise in every step (`stochastic_sampling`), from torch's own generator: call `torch.manual_seed` to repeat a
picture in Python, as `genkit generate --seed` does.
"""
    + _PICTURES
    + """These are early weights. Of prompts with one object about half come out right in every attribute; two objects
have their colours but lumpy outlines, and are rarely right; three are not. toy-image is the better painter.
"""
)


def fill(card: str, denoiser: Any, facts: Mapping[str, Any], **more: str) -> str:
    """A card with the figures of a run.

    Args:
        card: one of this module's.
        denoiser: whose parameters are counted.
        facts: ``steps`` and ``seconds`` of its training.
        more: further words of the card.
    """
    parameters = sum(tensor.numel() for tensor in denoiser.parameters()) / 1e6
    return card.format(parameters=parameters, steps=facts["steps"], minutes=round(facts["seconds"] / 60), **more)
