"""Word order in the toy models: the loss with two objects' words exchanged, less that with the right caption."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import RESULTS, environment, machine_line, report, table

MODELS = ("toy-image", "toy-dit", "toy-video", "toy-av")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``python -m benchmarks swap_gaps``."""
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="shipped names, or NAME=FOLDER")
    parser.add_argument("--samples", type=int, default=64, help="samples with two objects (default 64)")
    parser.add_argument("--level", type=float, default=0.85, help="noise level (default 0.85)")
    parser.add_argument("--output", type=Path, default=RESULTS)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    facts = environment()
    rows = []
    for given in options.models:
        name, _, folder = given.partition("=")
        rows.append({"model": given, **measure(name, folder or name, options.samples, options.level)})
    text = "\n".join(
        [
            "# Swap gaps of the toy models",
            "",
            machine_line(facts),
            f"Loss at noise level {options.level} with the words of two objects exchanged, less the loss with the "
            f"right caption, times 1000, with its standard error; {options.samples} samples, same noise. 0: word order "
            "is not heard.",
            "",
            table(rows),
            "",
        ]
    )
    report("swap_gaps", {"environment": facts, "level": options.level, "gaps": rows}, text, options.output)
    return 0


def measure(name: str, folder: str, samples: int, level: float) -> dict[str, str]:
    """Cells of one model, whose kind is that of a shipped name and whose weights lie in a folder."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, AutoencoderKLWan

    from genkit.training.data.world.clips import ClipSize, LatentPool
    from genkit.training.data.world.pictures import PicturePool, PictureSize
    from genkit.training.toys.av.model import ToyAv
    from genkit.training.toys.av.pool import SoundPool
    from genkit.training.toys.dit.model import ToyDit
    from genkit.training.toys.image.model import ToyImage
    from genkit.training.toys.shared import swap_gaps as gaps
    from genkit.training.toys.shared.starts import begin_from_weights, weights_folder
    from genkit.training.toys.video.model import ToyVideo

    path = weights_folder(folder)
    rng = np.random.default_rng(1)

    def frozen(kind, part: str = "vae"):
        return kind.from_pretrained(path / part, dtype=torch.float32).eval().requires_grad_(False)

    if name in ("toy-image", "toy-dit"):
        model = (ToyImage if name == "toy-image" else ToyDit)()
        pool, size = PicturePool(frozen(AutoencoderKL), rng, shares=(0.0, 1.0, 0.0)), PictureSize(128, 128)
        error_of, kinds = gaps.picture_errors(model), gaps.PICTURE_KINDS
    elif name == "toy-video":
        vae = frozen(AutoencoderKLWan)
        model = ToyVideo(vae.config.z_dim)
        pool, size = LatentPool(vae, rng, two_share=1.0), ClipSize(17, 128, 128)
        error_of, kinds = gaps.clip_errors(model), gaps.CLIP_KINDS
    elif name == "toy-av":
        model = ToyAv()
        audio = frozen(AutoencoderKLLTX2Audio, "audio_vae")
        pool = SoundPool(frozen(AutoencoderKLLTX2Video), rng, audio_vae=audio, two_share=1.0)
        size, error_of, kinds = ClipSize(17, 128, 128), gaps.av_errors(model), gaps.CLIP_KINDS
    else:
        raise SystemExit(f"model: got {name!r}, allowed: {', '.join(MODELS)}, or one of them as NAME=FOLDER")
    begin_from_weights(folder, model)
    found = gaps.swap_gaps(pool, size, error_of, kinds, samples, level)
    return {
        f"swap {kind}": f"{1000 * found[kind]:.1f} ± {1000 * found[f'{kind} error']:.1f}" if kind in found else ""
        for kind in ("shape", "texture", "motion", "relation")
    }
