"""A small call of every editing pipeline, the same for every model."""

import numpy as np
import torch

import genkit

SOURCE, TARGET = "a red circle on blue", "a green circle on blue"
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
MASK = np.zeros((20, 28), bool)
MASK[6:15, 8:20] = True
STEPS = {"num_inference_steps": 2}


def seeded():
    return torch.Generator().manual_seed(0)


def infedit(pipe):
    return genkit.InfEditPipeline.from_pipe(pipe)(
        PICTURE, TARGET, SOURCE, words=("green",), generator=seeded(), **STEPS
    )


def p2p(pipe):
    return genkit.PromptToPromptPipeline.from_pipe(pipe)(PICTURE, TARGET, SOURCE, words=("green",), **STEPS)


def flowedit(pipe):
    return genkit.FlowEditPipeline.from_pipe(pipe)(PICTURE, TARGET, SOURCE, generator=seeded(), **STEPS)


def img2img(pipe):
    return genkit.ImageToImagePipeline.from_pipe(pipe)(PICTURE, TARGET, generator=seeded(), **STEPS)


def vimaedit(pipe):
    words = {"words": ("green",), "source_words": ("red",)}
    return genkit.ViMAEditPipeline.from_pipe(pipe)(PICTURE, TARGET, SOURCE, generator=seeded(), **words, **STEPS)


def inpaint(pipe):
    return genkit.HDPainterPipeline.from_pipe(pipe)(PICTURE, MASK, TARGET, painta=0.5, generator=seeded(), **STEPS)


def rasg(pipe):
    return genkit.HDPainterPipeline.from_pipe(pipe)(PICTURE, MASK, TARGET, rasg=0.01, generator=seeded(), **STEPS)


def style(pipe):
    return genkit.AttenSTPipeline.from_pipe(pipe)(PICTURE, PICTURE[::-1].copy(), resample=1, **STEPS)


def consistent(pipe):
    return genkit.IRDiffusionPipeline.from_pipe(pipe)(
        ["a red circle", "a blue square"], ["a red circle and a blue square", "a blue square and a red circle"],
        height=16, width=32, guidance_scale=3.0, boxes={(None, 1): (0.5, 0, 1, 1)}, generator=seeded(), **STEPS,
    )  # fmt: skip


CALLS = (infedit, p2p, flowedit, img2img, vimaedit, inpaint, rasg, style, consistent)
