"""A sound for a silent clip, with toy-av: the picture stays as it is, only the sound is denoised.

The same on the command line: genkit generate "..." --model toy-av --video clip.mp4 -o sounding.mp4
"""

from fractions import Fraction

import numpy as np
import torch

import genkit
from genkit import world
from genkit.families.sound_features import features_of
from genkit.media import write_media
from genkit.pipelines.tasks.audio_video.complete import complete
from genkit.pipelines.tasks.audio_video.given import Given

SIZE = dict(num_frames=25, height=128, width=128)
FPS = 8

# A silent clip: a shape that bounces, drawn by the toy world, which also knows when a sound is due.
rng = np.random.default_rng(1)
scene = world.Scene((world.Actor("green", "circle", "big", "bounce"),), "black")
tracks = world.lay_out(scene, SIZE["num_frames"], SIZE["height"], SIZE["width"], rng)
clip = world.render_clip(scene, tracks, SIZE["height"], SIZE["width"])
due = world.find_events(scene, tracks, FPS, SIZE["width"])

pipe = genkit.load("toy-av")
sound = complete(
    pipe,
    Given(frames=clip, fps=Fraction(FPS)),
    features_of(pipe, "tones"),
    prompt=world.caption(scene),
    **SIZE,
    frame_rate=float(FPS), num_inference_steps=20, max_sequence_length=64, generator=torch.Generator().manual_seed(0),
    guidance_scale=4.0, guidance_rescale=0.7, audio_guidance_rescale=0.7, stg_scale=0.0, audio_stg_scale=0.0,
    modality_scale=1.0, audio_modality_scale=1.0, audio_guidance_scale=None,
).audio[0].T.float().numpy()  # fmt: skip

rate = pipe.vocoder.config.output_sampling_rate
heard = world.listen(sound.mean(axis=1), rate)
print("due at  ", [f"{event.time:.2f} s" for event in due])
print("heard at", [f"{event.time:.2f} s" for event in heard])
write_media("audio_for_video.mp4", clip, FPS, audio=sound, sample_rate=rate, force=True)
